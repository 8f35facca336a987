"""Builds a plan out of network namespaces, and breaks it on purpose.

    with Lab(STANDARD) as lab:
        lab["home"].run("ping", "-c", "1", "192.52.193.10")
        lab.cut("hub")

One namespace is the internet: a bridge for each segment, and routes between them. Each router and each host is another,
tied to the internet or to its router by a pair of devices. Routers have nftables' masquerade and a firewall that drops
what comes unasked, so that a stranger's SYN gets no answer of any kind.
"""

from __future__ import annotations

import ipaddress
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

from tests.lab.namespaces import Namespace, Namespaces
from tests.lab.nft import nft_command
from tests.lab.plan import Nat, Plan, Router, first_address

DEVICE: Final = "eth0"
"""Of a host; a router has `WAN` and `LAN`."""
WAN: Final = "wan"
LAN: Final = "lan"

_ROUTER_RULES: Final = """
table ip router {{
  chain input {{
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname {{ "lo", "{lan}" }} accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    iifname "{lan}" oifname "{wan}" accept
    ct status dnat accept
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    {forwards}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    oifname "{wan}" {nat}
  }}
}}
"""
_PARTITION: Final = """
table ip partition {
  chain forward {
    type filter hook forward priority 0; policy drop;
  }
}
"""
_LOSS: Final = """
table netdev {table} {{
  chain ingress {{
    type filter hook ingress device "{device}" priority 0;
    meta protocol ip {which} drop
  }}
}}
"""


class Lab:
    """The network, from the beginning of the `with` to its end."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._nft: list[str] = []
        self._namespaces: dict[str, Namespace] = {}
        self._addresses: dict[str, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Build it. Raises Unavailable where this machine does not let us; nothing is left then."""
        self._nft = nft_command()
        with ExitStack() as stack:
            namespaces = stack.enter_context(Namespaces())
            for name in ("internet", *self.plan.names):
                self._namespaces[name] = namespaces.add(name)
            self._build()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Namespace:
        """Where a host's, a router's or the internet's programs run."""
        return self._namespaces[name]

    def address(self, name: str) -> str:
        """The present address of a host, or the public one of a router."""
        return self._addresses[name]

    def public_address(self, name: str) -> str:
        """The address under which others see a host."""
        at = self.plan.host(name).at
        return self._addresses[at if at in self._addresses else name]

    # -- faults --------------------------------------------------------------------------------------------------

    def cut(self, name: str) -> None:
        """Pull a host's or a router's cable."""
        self._far_end(name).run("ip", "link", "set", name, "down")

    def heal(self, name: str) -> None:
        """Plug it in again."""
        self._far_end(name).run("ip", "link", "set", name, "up")

    def partition(self) -> None:
        """Cut the segments apart: what goes from one to another is swallowed."""
        self._rules(self["internet"], _PARTITION)

    def reunite(self) -> None:
        """End the partition."""
        self._rules(self["internet"], "delete table ip partition")

    def change_address(self, name: str, address: str) -> None:
        """Give a host, or a router on its public side, another address, as a new lease does.

        What was connected is lost without a word.
        """
        network, device = self._place_of(name)
        self._give_address(self[name], device, address, network, before=self._addresses[name])
        self._addresses[name] = address

    def translate(self, name: str, nat: Nat) -> None:
        """Have a router translate in another way from now on."""
        self.plan = self.plan.with_router(name, nat=nat)
        self._rules(self[name], "delete table ip router\n" + self._rules_of(self.plan.router(name)))

    def lose(self, name: str, percent: int) -> None:
        """Drop so many of a hundred packets on a host's or router's cable, in both directions. 0 ends it."""
        _, device = self._place_of(name)
        which = "" if percent >= 100 else f"numgen random mod 100 < {percent}"
        for namespace, end in ((self[name], device), (self._far_end(name), name)):
            table = f"loss_{end}".replace("-", "_")
            rules = f"add table netdev {table}\ndelete table netdev {table}\n"
            if percent:
                rules += _LOSS.format(table=table, device=end, which=which)
            self._rules(namespace, rules)

    def delay(self, name: str, ms: float) -> None:
        """Hold packets back on a host's or router's cable, in both directions. Raises Unavailable without netem."""
        _, device = self._place_of(name)
        for namespace, end in ((self[name], device), (self._far_end(name), name)):
            namespace.run("tc", "qdisc", "replace", "dev", end, "root", "netem", "delay", f"{ms}ms")

    # -- inside --------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        internet = self["internet"]
        self._forward_packets(internet)
        for segment in self.plan.segments:
            self._bridge(internet, segment.name, segment.network)
        for router in self.plan.routers:
            self._tie(internet, router.segment, router.name, WAN, router.address, self._gateway_of(router.segment))
            self._forward_packets(self[router.name])
            self._bridge(self[router.name], LAN, router.lan)
            self._rules(self[router.name], self._rules_of(router))
        behind = {router.name for router in self.plan.routers}
        for host in self.plan.hosts:
            near, bridge = (self[host.at], LAN) if host.at in behind else (internet, host.at)
            self._tie(near, bridge, host.name, DEVICE, host.address, self._gateway_of(host.at))

    def _tie(self, near: Namespace, bridge: str, name: str, device: str, address: str, gateway: str) -> None:
        """Lay a cable from a bridge to a namespace, and give that an address."""
        far = self[name]
        self._ip(
            near,
            f"link add {name} type veth peer name {device} netns {far.pid}",
            f"link set {name} master {bridge} up",
        )
        self._give_address(far, device, address, str(ipaddress.ip_interface(f"{gateway}/24").network))
        self._addresses[name] = address

    def _give_address(
        self, namespace: Namespace, device: str, address: str, network: str, *, before: str | None = None
    ) -> None:
        length = ipaddress.ip_network(network).prefixlen
        self._ip(
            namespace,
            *([f"addr del {before}/{length} dev {device}"] if before else []),
            f"addr add {address}/{length} dev {device}",
            f"link set {device} up",
            f"route replace default via {first_address(network)} dev {device}",
        )

    def _bridge(self, namespace: Namespace, name: str, network: str) -> None:
        length = ipaddress.ip_network(network).prefixlen
        self._ip(
            namespace,
            f"link add {name} type bridge",
            f"addr add {first_address(network)}/{length} dev {name}",
            f"link set {name} up",
        )

    def _forward_packets(self, namespace: Namespace) -> None:
        """What goes over a bridge alone is no business of the firewall's."""
        namespace.run(
            "sh",
            "-c",
            "echo 1 > /proc/sys/net/ipv4/ip_forward; "
            "for hook in /proc/sys/net/bridge/bridge-nf-call-iptables; do [ ! -e $hook ] || echo 0 > $hook; done",
        )

    def _gateway_of(self, place: str) -> str:
        return first_address(self.plan.network_of(place))

    def _place_of(self, name: str) -> tuple[str, str]:
        """The addresses that a host or router may have, and its device for them."""
        if any(router.name == name for router in self.plan.routers):
            return self.plan.network_of(self.plan.router(name).segment), WAN
        return self.plan.network_of(self.plan.host(name).at), DEVICE

    def _far_end(self, name: str) -> Namespace:
        """Where the other end of the cable is."""
        hosts = {host.name: host.at for host in self.plan.hosts}
        return self._namespaces.get(hosts.get(name, ""), self["internet"])

    def _rules_of(self, router: Router) -> str:
        forwards = "\n    ".join(
            f'iifname "{WAN}" tcp dport {port} dnat to {self.plan.host(host).address}' for port, host in router.forwards
        )
        return _ROUTER_RULES.format(wan=WAN, lan=LAN, nat=router.nat.value, forwards=forwards)

    def _rules(self, namespace: Namespace, rules: str) -> None:
        namespace.run(*self._nft, "-f", "-", text=rules)

    def _ip(self, namespace: Namespace, *commands: str) -> None:
        namespace.run("ip", "-batch", "-", text="\n".join(commands) + "\n")
