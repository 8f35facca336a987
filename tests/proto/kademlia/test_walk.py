"""A search with the time: what is made when, what is overdue, when it is given up."""

from __future__ import annotations

from p2pgrid.proto.kademlia.lookup import Lookup
from p2pgrid.proto.kademlia.places import Node
from p2pgrid.proto.kademlia.replicas import Search
from p2pgrid.proto.kademlia.walk import LINGER_S, OVERDUE_S, Walk
from tests.proto.kademlia.answering import OWN
from tests.proto.kademlia.nodes import claim, draws, node, spread


def walk_from(*nodes: Node) -> Walk:
    return Walk(Search(b"key", lambda _: Lookup(0, OWN, nodes, draw=draws()), at_most=1), OWN)


def test_nobody_to_ask_is_over_at_once() -> None:
    walk = walk_from()
    assert walk.due(0.0) == []
    assert walk.is_over


def test_it_is_over_when_all_have_answered() -> None:
    walk = walk_from(*spread(3))
    requests = walk.due(0.0)
    assert {request.node for request in requests} == set(spread(3))
    for request in requests:
        assert not walk.is_over
        walk.answered(request, request.node, [])
        assert walk.due(0.1) == []
    assert walk.is_over and walk.silent_nodes == []


def test_who_is_named_is_asked_next() -> None:
    first, second = spread(2)
    walk = walk_from(first)
    [request] = walk.due(0.0)
    walk.answered(request, first, [second])
    [request] = walk.due(0.1)
    assert request.node == second


def test_a_silent_node_is_not_waited_for_and_is_noted() -> None:
    answering, silent = spread(2)
    walk = walk_from(answering, silent)
    requests = {request.node: request for request in walk.due(0.0)}
    assert walk.wakes_at_s == OVERDUE_S
    walk.answered(requests[answering], answering, [])
    assert walk.due(0.2) == [] and not walk.is_over
    assert walk.due(OVERDUE_S) == [] and not walk.is_over
    assert walk.wakes_at_s == OVERDUE_S + LINGER_S
    walk.due(OVERDUE_S + LINGER_S)
    assert walk.is_over and walk.silent_nodes == [silent]


def test_while_nobody_has_answered_all_are_waited_for() -> None:
    walk = walk_from(*spread(2))
    requests = walk.due(0.0)
    for now_s in (1.0, 3.0, 5.9):
        assert walk.due(now_s) == [] and not walk.is_over
    walk.silent(requests[0])
    walk.answered(requests[1], requests[1].node, [])
    walk.due(6.0)
    assert walk.is_over


def test_an_answer_that_comes_late_still_counts() -> None:
    first, late, third = spread(3)
    walk = walk_from(first, late)
    requests = {request.node: request for request in walk.due(0.0)}
    walk.answered(requests[first], first, [])
    assert walk.due(1.5) == []
    walk.answered(requests[late], late, [third], [claim(b"provider")])
    [request] = walk.due(1.6)
    assert request.node == third
    walk.answered(request, third, [])
    walk.due(1.7)
    assert walk.is_over
    assert [one.peer for one in walk.providers(5, draws())] == [b"provider"]


def test_what_is_known_already_is_among_the_providers() -> None:
    walk = walk_from(node(1))
    walk.knows([claim(b"known", signed_at=None), claim(OWN)])
    [request] = walk.due(0.0)
    walk.answered(request, request.node, [], [claim(b"told")])
    assert {one.peer for one in walk.providers(5, draws())} == {b"known", b"told"}
