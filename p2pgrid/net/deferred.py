"""What libp2p imports and a node hardly ever uses is loaded when it is used, and not before.

`import libp2p` (0.8.1) brings 1,300 modules and 80 MB: QUIC, WebSocket, mDNS, ACME, bitswap, two HTTP clients. A node
speaks TCP, Noise, yamux and Kademlia. Here the modules in `DEFERRED` are put off: whoever imports a name from one of
them gets a `DeferredName`, and the module is loaded when the name is called, subclassed, or asked for an attribute.

Only modules from which classes and functions alone are imported may stand in the list: a constant would be compared,
and an exception caught, without being asked for anything. A test holds the list to that.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

DEFERRED: Final = (
    "libp2p.bitswap",
    "libp2p.crypto.ecc",
    "libp2p.discovery",
    "libp2p.metrics",
    "libp2p.peer.persistent",
    "libp2p.rcmgr.prometheus_exporter",
    "libp2p.records.ipns",
    "libp2p.relay",
    "libp2p.security.pnet",
    "libp2p.security.secio",
    "libp2p.security.tls",
    "libp2p.transport.quic",
    "libp2p.transport.webtransport",
    "libp2p.transport.websocket",
    "multiaddr.resolvers.dns",
)
"""Each with all that is below it."""
_AT_ONCE: Final = frozenset({"libp2p.transport.quic.exceptions"})
"""Loaded all the same: its exceptions are caught."""

_loading = threading.RLock()


class DeferredName:
    """A class or function of a module that is not loaded yet."""

    __slots__ = ("_module", "_name")

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return loaded(self)(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python itself asks for, of annotations above all
            raise AttributeError(name)
        return getattr(loaded(self), name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (loaded(self),)

    def __instancecheck__(self, instance: object) -> bool:
        # While the module is not loaded there can be no instance.
        return _is_loaded(self._module) and isinstance(instance, loaded(self))

    def __subclasscheck__(self, subclass: type) -> bool:
        return _is_loaded(self._module) and issubclass(subclass, loaded(self))

    def __or__(self, other: object) -> Any:
        return Any  # in an annotation that is evaluated

    __ror__ = __or__

    def __getitem__(self, key: object) -> Any:
        return Any

    def __repr__(self) -> str:
        return f"<deferred {self._module}.{self._name}>"


class _DeferredModule(ModuleType):
    """Stands in `sys.modules` until the module is loaded."""

    names: dict[str, DeferredName]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.names.setdefault(name, DeferredName(self.__name__, name))


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of `DEFERRED`, until they are to be loaded."""

    def __init__(self) -> None:
        self.real: set[str] = set()
        """Modules that have been asked for."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in self.real or not is_deferred(fullname):
            return None
        there = importlib.machinery.PathFinder.find_spec(fullname, path)
        if there is None:
            return None
        spec = importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        spec.submodule_search_locations = there.submodule_search_locations or []
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = _DeferredModule(spec.name)
        module.names = {}
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


_finder: Final = _Finder()


def install() -> None:
    """From now on, put the modules off. Does nothing in a process that has imported libp2p already."""
    if _finder not in sys.meta_path and not {"libp2p", "multiaddr"} & set(sys.modules):
        sys.meta_path.insert(0, _finder)


def is_deferred(module: str) -> bool:
    """True for a module in the list, or below one."""
    if module in _AT_ONCE:
        return False
    return any(module == name or module.startswith(f"{name}.") for name in DEFERRED)


def deferred_names() -> list[DeferredName]:
    """Every name that was imported from a module that is not loaded."""
    found = [module for module in list(sys.modules.values()) if isinstance(module, _DeferredModule)]
    return [name for module in found for name in module.names.values()]


def loaded(deferred: DeferredName) -> Any:
    """What the name stands for; its module is loaded if it is not yet."""
    with _loading:
        module = _load(deferred._module)
        if not hasattr(module, deferred._name):
            return _load(f"{deferred._module}.{deferred._name}")
    return getattr(module, deferred._name)


def _is_loaded(module: str) -> bool:
    return module in sys.modules and not isinstance(sys.modules[module], _DeferredModule)


def _load(name: str) -> ModuleType:
    """The module itself, and the packages above it."""
    parent = name.rpartition(".")[0]
    if parent and is_deferred(parent):
        _load(parent)
    if not _is_loaded(name):
        _finder.real.add(name)
        sys.modules.pop(name, None)
    return importlib.import_module(name)
