"""How peers find and reach one another: names, discovery and introductions over libp2p, and the direct road.

Importing a libp2p module takes half a second and 50 MB, so this package imports none of them by itself:
`p2pgrid.net.network` does, and is imported where a program really joins the network. Without `deferred` it would take
twice as much.
"""

from p2pgrid.net.deferred import install

install()
