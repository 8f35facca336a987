// A js-libp2p peer at either end of a circuit, or as the relay itself. Prints one line of JSON for what it did.
//
//   node relay.mjs dial ADDRESS     ping the peer that the circuit address leads to
//   node relay.mjs listen RELAY     be reached through the relay: prints the circuit address, then answers until killed
//   node relay.mjs relay            relay: prints the address, then goes on until killed

import './polyfill.mjs'
import { createLibp2p } from 'libp2p'
import { tcp } from '@libp2p/tcp'
import { noise } from '@libp2p/noise'
import { yamux } from '@libp2p/yamux'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { multiaddr } from '@multiformats/multiaddr'

const [what, at] = process.argv.slice(2)
const listen = { dial: [], listen: [`${at}/p2p-circuit`], relay: ['/ip4/127.0.0.1/tcp/0'] }[what]
const services = { identify: identify(), ping: ping({ runOnLimitedConnection: true }) }
if (what === 'relay') services.relay = circuitRelayServer({ reservations: { applyDefaultLimit: false } })

const node = await createLibp2p({
  addresses: { listen },
  transports: [tcp(), circuitRelayTransport()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services,
  connectionGater: { denyDialMultiaddr: () => false } // loopback is allowed
})

if (what === 'dial') {
  const connection = await node.dial(multiaddr(at))
  const took = await node.services.ping.ping(multiaddr(at))
  console.log(JSON.stringify({
    peer: connection.remotePeer.toString(),
    through: connection.remoteAddr.toString(),
    seconds: connection.limits?.seconds ?? null,
    pinged: took >= 0
  }))
  await node.stop()
  process.exit(0)
}

const wanted = what === 'listen' ? '/p2p-circuit/' : '/tcp/'
const timer = setInterval(() => {
  const address = node.getMultiaddrs().map(String).find((one) => one.includes(wanted))
  if (address === undefined) return
  clearInterval(timer)
  console.log(JSON.stringify({ address }))
  setInterval(() => {}, 1000)
}, 50)
