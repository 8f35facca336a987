"""Takes away, one after the other, what mends libp2p's faults or bounds what strangers do, and runs the tests of each.

    scripts/unmend             all of them (some minutes)
    scripts/unmend ping road   those with such words in their name

A mend whose tests pass without it is reported, and ends this with 1. Nothing in the checkout is changed: a copy is.
The list is that of docs/hardening.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Edit:
    """What stands once in a file, named from p2pgrid/net, and what stands there instead."""

    file: str
    there: str
    instead: str


@dataclass(frozen=True)
class Mend:
    """What is taken away, and the tests that must notice, each of them: named from tests/net."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


MENDS = (
    Mend(
        "an exception in a stream's handler ends the host",
        (
            Edit(
                "host.py",
                "except Exception as error:  # noqa: BLE001 (the host's boundary",
                "except ZeroDivisionError as error:  # noqa: BLE001 (the host's boundary",
            ),
        ),
        ("test_host.py::test_an_exception_in_a_handler_ends_that_stream_and_is_reported_once",),
    ),
    Mend(
        "a protocol's name may be malformed, or endless",
        (
            Edit(
                "host.py",
                "    communicator_module.read_delim = _read_protocol_name\n",
                "",
            ),
        ),
        ("test_host.py::test_an_overlong_protocol_name_ends_the_connection_at_once",),
    ),
    Mend(
        "plaintext is accepted",
        (
            Edit(
                "host.py",
                "        {NOISE_ID: NoiseTransport(",
                "        {__import__('libp2p.security.insecure.transport', fromlist=['x']).PLAINTEXT_PROTOCOL_ID:\n"
                "         __import__('libp2p.security.insecure.transport', fromlist=['x']).InsecureTransport(keys),\n"
                "         NOISE_ID: NoiseTransport(",
            ),
        ),
        ("test_host.py::test_plaintext_is_refused",),
    ),
    Mend(
        "streams of a connection are not capped",
        (
            Edit(
                "host.py",
                "        if not self._seats.take(connection):",
                "        if not self._seats.take(connection) and False:",
            ),
        ),
        ("test_host.py::test_streams_over_the_cap_are_reset",),
    ),
    Mend(
        "too many connections are taken",
        (
            Edit(
                "host.py",
                "                total=limits.max_connections,\n",
                "                total=10**6,\n",
            ),
            Edit(
                "host.py",
                "            max_connections=limits.max_connections,\n",
                "            max_connections=10**6,\n",
            ),
        ),
        ("test_host.py::test_so_many_connections_are_taken_and_no_more",),
    ),
    Mend(
        "two processes may share a port",
        (
            Edit(
                "host.py",
                "        check_free(address)\n",
                "        pass\n",
            ),
        ),
        ("test_host.py::test_a_port_in_use_is_named",),
    ),
    Mend(
        "what a peer says it sees as our address is told to others",
        (
            Edit(
                "host.py",
                "        disable_identify_address_discovery=True,\n",
                "",
            ),
        ),
        ("test_host.py::test_what_peers_see_of_us_is_not_collected",),
    ),
    Mend(
        "handlers take as many streams as come",
        (
            Edit(
                "doors.py",
                "            if not seats.take(address, peer):",
                "            if not seats.take(address, peer) and False:",
            ),
        ),
        ("test_floods.py::test_a_peer_has_so_many_streams_of_a_protocol_at_once",),
    ),
    Mend(
        "identify keeps a megabyte of each peer",
        (
            Edit(
                "host.py",
                "    identify_intake.install()\n",
                "",
            ),
        ),
        ("test_floods.py::test_what_a_peer_says_of_itself_is_cut_to_size",),
    ),
    Mend(
        "a peer that says it has changed is asked as often as it says so",
        (
            Edit(
                "newcomers.py",
                "        if is_direct and self._changes.take(str(peer_id), trio.current_time()):",
                "        if is_direct:",
            ),
        ),
        ("test_newcomers.py::test_a_peer_that_says_so_without_end_is_asked_a_few_times",),
    ),
    Mend(
        "pings are answered at any rate, and peers remembered",
        (
            Edit(
                "host.py",
                "        self.set_stream_handler(PING_ID, answer_pings(self.doors.pace))\n",
                "",
            ),
        ),
        ("test_floods.py::test_pings_are_answered_at_a_rate_and_nobody_is_remembered",),
    ),
    Mend(
        "a dial waits out 250 ms",
        (
            Edit(
                "swarm.py",
                "            return await self._dial_any(peer_id, addresses, direct_only)\n",
                "            self.peerstore.add_addrs(peer_id, list(addresses), 120)\n"
                "            return (await super().dial_peer(peer_id))[0]\n",
            ),
            Edit(
                "host.py",
                "            max_connections_per_peer=1,\n",
                "",
            ),
        ),
        ("test_host.py::test_connecting_waits_for_nothing",),
    ),
    Mend(
        "a dial tries the first address alone, and is not tried again for a minute",
        (
            Edit(
                "swarm.py",
                "            return await self._dial_any(peer_id, addresses, direct_only)\n",
                "            self.peerstore.add_addrs(peer_id, list(addresses), 120)\n"
                "            return (await super().dial_peer(peer_id))[0]\n",
            ),
        ),
        (
            "test_host.py::test_a_failed_dial_does_not_bar_the_right_address",
            "test_host.py::test_every_address_is_tried",
        ),
    ),
    Mend(
        "an outgoing handshake has no time bound",
        (
            Edit(
                "swarm.py",
                "        with trio.move_on_after(DIAL_TIMEOUT_S) as deadline:",
                "        with trio.move_on_after(1e6) as deadline:",
            ),
        ),
        ("test_host.py::test_a_dialled_address_that_says_nothing_is_given_up_in_time",),
    ),
    Mend(
        "an inbound connection keeps its slot after it closed",
        (
            Edit(
                "swarm.py",
                "            await muxed.event_closed.wait()\n",
                "            await trio.sleep_forever()\n",
            ),
        ),
        ("test_host.py::test_an_ended_connection_gives_its_slot_back",),
    ),
    Mend(
        "one address can take every inbound slot",
        (
            Edit(
                "swarm.py",
                " or not self._seats.take(ip):",
                " or (not self._seats.take(ip) and False):",
            ),
        ),
        (
            "test_host.py::test_one_address_cannot_take_every_slot",
            "test_floods.py::test_where_half_of_all_connections_are_taken_an_address_has_one_eighth",
        ),
    ),
    Mend(
        "an address may connect as often as it likes",
        (
            Edit(
                "swarm.py",
                "        if not self._connects.take(ip, trio.current_time()) or",
                "        if",
            ),
        ),
        ("test_floods.py::test_an_address_that_connects_too_often_is_turned_away",),
    ),
    Mend(
        "a task cancelled while it opens a stream leaves it open",
        (
            Edit(
                "swarm.py",
                "        with shielded_for(STREAM_TIMEOUT_S):\n            return await super()",
                "        if True:\n            return await super()",
            ),
            Edit(
                "yamux.py",
                "        with shielded_for(self.write_timeout_s):\n            return await super().open_stream()",
                "        if True:\n            return await super().open_stream()",
            ),
        ),
        ("test_host.py::test_a_task_cancelled_while_it_opens_a_stream_leaves_none_open",),
    ),
    Mend(
        "a connection that is ending is taken for a live one",
        (
            Edit(
                "swarm.py",
                "            and not (connection.muxed_conn.is_broken or "
                "connection.muxed_conn.event_shutting_down.is_set())\n",
                "",
            ),
        ),
        ("test_host.py::test_a_connection_that_is_ending_is_passed_over",),
    ),
    Mend(
        "a cancelled writer tears the frame, and the connection",
        (
            Edit(
                "yamux.py",
                "        with shielded_for(self.write_timeout_s):\n            try:\n                self._write_lock",
                "        with trio.move_on_after(self.write_timeout_s):\n"
                "            try:\n"
                "                self._write_lock",
            ),
        ),
        ("test_host.py::test_cancelled_writers_leave_the_connection_whole",),
    ),
    Mend(
        "a peer that takes no data holds its writer for ever",
        (
            Edit(
                "yamux.py",
                "        with shielded_for(self.write_timeout_s):\n            try:\n                self._write_lock",
                "        with trio.CancelScope(shield=True):\n            try:\n                self._write_lock",
            ),
        ),
        ("test_host.py::test_a_peer_that_takes_no_data_loses_its_connection",),
    ),
    Mend(
        "a peer may send past its window without end",
        (
            Edit(
                "yamux.py",
                "        if length + sum(map(len, self.stream_buffers.values())) > MAX_UNREAD_BYTES:",
                "        if False:",
            ),
        ),
        ("test_host.py::test_a_peer_that_ignores_its_window_loses_its_connection",),
    ),
    Mend(
        "a window grows to 4 MiB for a stream that nobody reads",
        (
            Edit(
                "host.py",
                "    yamux_module.YamuxStream = SteadyStream",
                "    _unused = SteadyStream",
            ),
        ),
        ("test_host.py::test_a_stream_that_is_read_slowly_takes_no_more_than_its_window",),
    ),
    Mend(
        "a stream that was reset reads like one that ended",
        (
            Edit(
                "yamux.py",
                "            if stream is None or stream.reset_received:\n                raise MuxedStreamReset",
                "            if False:\n                raise MuxedStreamReset",
            ),
        ),
        ("test_host.py::test_a_reset_does_not_read_like_an_end",),
    ),
    Mend(
        "an exception in a connection's task ends the host",
        (
            Edit(
                "yamux.py",
                "        except Exception as error:  # noqa: BLE001 (the connection's boundary",
                "        except ZeroDivisionError as error:  # noqa: BLE001 (the connection's boundary",
            ),
        ),
        ("test_host.py::test_a_fault_in_a_connections_task_ends_that_connection_alone",),
    ),
    Mend(
        "frames and streams come as fast as they are sent",
        (
            Edit(
                "yamux.py",
                "        throttle = self.throttle_of(conn) if self.throttle_of is not None else None\n",
                "        throttle = None\n",
            ),
        ),
        (
            "test_floods.py::test_frames_are_dealt_with_no_faster_than_the_rate",
            "test_floods.py::test_streams_are_opened_no_faster_than_the_rate",
            "test_floods.py::test_the_rate_is_that_of_an_address_whatever_its_connections_and_keys",
        ),
    ),
    Mend(
        "IPv6 callers are all counted as one",
        (
            Edit(
                "tcp.py",
                "                host, port = self.stream.socket.getpeername()[:2]\n",
                "                host, port = self.stream.socket.getpeername()\n",
            ),
        ),
        ("test_host.py::test_a_caller_over_ipv6_is_counted_by_its_network",),
    ),
    Mend(
        "strangers make the host forget its key",
        (
            Edit(
                "peerstore.py",
                "    def _enforce_peer_limit(self)",
                "    def _enforce_no_peer_limit(self)",
            ),
        ),
        ("test_host.py::test_strangers_cannot_make_the_host_forget_its_key",),
    ),
    Mend(
        "what peers cause is logged",
        (
            Edit(
                "host.py",
                "    libp2p_logs.quieten()\n",
                "",
            ),
        ),
        ("test_host.py::test_what_peers_cause_is_not_logged",),
    ),
    Mend(
        "who sends past a link's window is let be",
        (
            Edit(
                "session_stream.py",
                "        if self._muxed.recv_window < 0:",
                "        if False:",
            ),
        ),
        ("test_stream_road.py::test_who_sends_past_its_window_loses_the_connection_alone",),
    ),
    Mend(
        "DHT: the protocol id is fixed",
        (
            Edit(
                "dht.py",
                'f"/p2pgrid/{network_name}/kad/1.0.0"',
                '"/ipfs/kad/1.0.0"',
            ),
        ),
        ("test_dht.py::test_two_networks_do_not_mix",),
    ),
    Mend(
        "DHT: whoever asks enters the routing table",
        (
            Edit(
                "kad_server.py",
                "        is_well = False\n",
                "        is_well = False\n        self._member.answered(Node(asker.peer, 1, (), (b'at',)), 0.0)\n",
            ),
        ),
        ("test_floods.py::test_who_asks_the_dht_does_not_enter_its_table",),
    ),
    Mend(
        "DHT: idle streams block it",
        (
            Edit(
                "kad_server.py",
                "with trio.fail_after(self.idle_timeout_s):",
                "with trio.fail_after(1e6):",
            ),
        ),
        ("test_dht.py::test_idle_streams_do_not_block_the_dht",),
    ),
    Mend(
        "DHT: values are stored for anyone",
        (
            Edit(
                "kad_server.py",
                "        else:\n            return None\n        return bytes(answer",
                "        return bytes(answer",
            ),
        ),
        ("test_dht.py::test_values_are_not_stored",),
    ),
    Mend(
        "DHT: requests of 4 MiB are read",
        (
            Edit(
                "kad_server.py",
                "read_varint_prefixed_bytes_limited(stream, MAX_REQUEST_BYTES)",
                "read_varint_prefixed_bytes_limited(stream, 2**22)",
            ),
        ),
        ("test_floods.py::test_a_request_to_the_dht_has_a_bounded_size",),
    ),
    Mend(
        "DHT: ten records in ten seconds, the rest dropped",
        (
            Edit(
                "kad_server.py",
                "return self._announced_by[peer] <= MAX_ADD_PROVIDER_PER_WINDOW",
                "return self._announced_by[peer] <= 10",
            ),
        ),
        ("test_dht.py::test_many_keys_reach_a_server_that_counts",),
    ),
    Mend(
        "DHT: requests on one stream are answered at any rate",
        (
            Edit(
                "kad_server.py",
                "            await self._host.doors.pace(stream)\n",
                "",
            ),
        ),
        ("test_floods.py::test_requests_on_one_stream_of_the_dht_are_answered_at_a_rate",),
    ),
    Mend(
        "DHT: records are kept for two days",
        (
            Edit(
                "../proto/kademlia/records.py",
                "RECORD_TTL_S: Final = 60 * 60\n",
                "RECORD_TTL_S: Final = 48 * 60 * 60\n",
            ),
        ),
        ("../proto/kademlia/test_records.py::test_a_record_is_kept_for_an_hour",),
    ),
    Mend(
        "DHT: any number of records is kept",
        (
            Edit(
                "../proto/kademlia/records.py",
                "self._count >= self._max_records or ",
                "",
            ),
        ),
        ("../proto/kademlia/test_records.py::test_the_number_of_records_is_bounded_whoever_makes_them",),
    ),
    Mend(
        "DHT: any address is passed on",
        (
            Edit(
                "address_proof.py",
                "        if leads_over_relay(address):\n            return False\n        host = host_of(address)\n",
                "        return True\n        host = host_of(address)\n",
            ),
        ),
        ("test_kad_hostile.py::test_nobody_announces_somebody_elses_address",),
    ),
    Mend(
        "DHT: the signature of another counts",
        (
            Edit(
                "kad_query.py",
                "    if signer != peer_id or record.peer_id != peer_id:\n        return None\n",
                "",
            ),
        ),
        ("test_kad_hostile.py::test_the_signature_of_another_and_a_record_signed_for_another_are_no_signatures",),
    ),
    Mend(
        "DHT: a look-up waits for whoever is silent",
        (
            Edit(
                "../proto/kademlia/lookup.py",
                "overdue = 0 if self._found else sum(",
                "overdue = sum(",
            ),
        ),
        ("../proto/kademlia/test_walk.py::test_a_silent_node_is_not_waited_for_and_is_noted",),
    ),
    Mend(
        "DHT: two halves of a network never meet again",
        (
            Edit(
                "dht.py",
                "        if any(news):\n",
                "        if False:\n",
            ),
        ),
        ("test_dht.py::test_two_halves_that_know_nothing_of_one_another_find_together_through_a_bootstrap_peer",),
    ),
    Mend(
        "a flood of frames on a link takes all of the loop's time",
        (
            Edit(
                "rest.py",
                "            transport.pause_reading()\n",
                "",
            ),
        ),
        ("test_direct.py::test_a_flood_of_frames_takes_no_more_than_its_share_of_time",),
    ),
    Mend(
        "the direct road takes connections at any rate",
        (
            Edit(
                "direct.py",
                "            if not self._connects.take(caller, loop.time()) or",
                "            if",
            ),
        ),
        ("test_direct.py::test_who_connects_too_often_is_turned_away",),
    ),
    Mend(
        "the direct road takes any number of connections of an address",
        (
            Edit(
                "direct.py",
                " or not self._seats.take(caller):",
                " or (not self._seats.take(caller) and False):",
            ),
        ),
        ("test_direct.py::test_an_address_takes_no_more_connections_than_it_may",),
    ),
    Mend(
        "a peer holds as many links over libp2p as it likes",
        (
            Edit(
                "libp2p_road.py",
                " or not self.seats.take(address, peer_id):",
                " or (not self.seats.take(address, peer_id) and False):",
            ),
        ),
        (
            "test_libp2p_road.py::test_a_peer_holds_no_more_links_than_it_may_and_others_still_come",
            "test_libp2p_road.py::test_the_other_caps_are_those_of_the_direct_road",
        ),
    ),
    Mend(
        "streams that cost a disk its time come at any rate",
        (
            Edit(
                "doors.py",
                "                if paced is not None and (pause_s := paced.spend(address, trio.current_time())):",
                "                if paced is not None and (pause_s := 0 * paced.spend(address, trio.current_time())):",
            ),
        ),
        ("test_floods.py::test_streams_that_cost_a_disk_its_time_are_paced",),
    ),
    Mend(
        "an address opens as many channels as it makes keys",
        (Edit("../provider/control.py", "            shop.links.check_opening(", "            shop.links.note("),),
        ("../provider/test_hostile.py::test_an_address_opens_so_many_channels_whatever_keys_it_makes",),
    ),
    Mend(
        "an address asks about the log as often as it likes",
        (Edit("../provider/log_exchange.py", "shop.links.check_log_question(", "shop.links.note("),),
        ("../provider/test_hostile.py::test_an_address_asks_so_much_about_the_log",),
    ),
    Mend(
        "pages: something is signed for a name that is not ours",
        (
            Edit(
                "../provider/named_pages.py",
                "or not self._is_own_host(host, request):",
                "or False:",
            ),
        ),
        ("../provider/test_pages.py::test_nothing_is_signed_for_a_name_that_is_not_ours",),
    ),
    Mend(
        "pages: a challenge is met twice",
        (
            Edit(
                "../proto/peer_id_auth.py",
                "        if not self._use(asked.challenge, now_ms):",
                "        if False:",
            ),
        ),
        ("../proto/test_peer_id_auth.py::test_a_challenge_is_met_once_and_in_time",),
    ),
    Mend(
        "pages: they are asked for at any rate",
        (
            Edit(
                "../provider/pages.py",
                "        if not self._may_ask(request):",
                "        if False:",
            ),
        ),
        ("../provider/test_pages.py::test_who_asks_too_often_is_told_so",),
    ),
    Mend(
        "pages: records are made faster than they are taken",
        (
            Edit(
                "../provider/named_pages.py",
                "                await _taken(reply)",
                "                await asyncio.sleep(0)",
            ),
        ),
        ("../provider/test_pages.py::test_a_slow_reader_of_records_costs_little_and_is_cut_off",),
    ),
    Mend(
        "a host that takes no turns is not noticed",
        (
            Edit(
                "turn_watch.py",
                "            interrupt(thread)\n",
                "",
            ),
        ),
        ("test_bridge.py::test_a_program_that_takes_no_turns_is_interrupted_and_restarted",),
    ),
    Mend(
        "a host that was cut off keeps its port",
        (
            Edit(
                "service.py",
                "            abandon(self._host)\n",
                "            pass\n",
            ),
        ),
        ("test_network.py::test_a_host_that_was_cut_off_leaves_its_port_to_the_next",),
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="only mends with one of these in their name")
    words = parser.parse_args().words
    chosen = [mend for mend in MENDS if not words or any(word in mend.name for word in words)]
    if not chosen:
        parser.error(f"no mend has any of {words} in its name; tests/net/unmend.py lists them")
    unnoticed = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("p2pgrid", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("pyproject.toml", "bootstrap_peers.toml"):
            shutil.copy(ROOT / file, copy)
        assert not fails(copy, *sorted({test for mend in chosen for test in mend.tests})), "a test fails as things are"
        for mend in chosen:
            noticed = is_noticed(copy, mend)
            print(f"{'noticed ' if noticed else 'PASSED  '} {mend.name}", flush=True)
            unnoticed += [] if noticed else [mend]
    print(f"{len(chosen) - len(unnoticed)} of {len(chosen)} are noticed")
    return 1 if unnoticed else 0


def is_noticed(copy: Path, mend: Mend) -> bool:
    """Whether each of the tests fails without the mend."""
    for edit in mend.edits:
        path = copy / "p2pgrid" / "net" / edit.file
        whole = path.read_text()
        assert whole.count(edit.there) == 1, f"{edit.file}: {edit.there!r} stands there {whole.count(edit.there)} times"
        path.write_text(whole.replace(edit.there, edit.instead))
    try:
        return all(fails(copy, test) for test in mend.tests)
    finally:
        for edit in mend.edits:
            shutil.copy(ROOT / "p2pgrid" / "net" / edit.file, copy / "p2pgrid" / "net" / edit.file)


def fails(copy: Path, *tests: str) -> bool:
    """Whether one of the tests ran, and failed."""
    named = [f"tests/net/{test}" for test in tests]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=60", *named]
    run = subprocess.run(command, cwd=copy, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(copy)})
    assert run.returncode in (0, 1, 3), f"{named} did not run:\n{run.stdout[-3000:]}\n{run.stderr[-1000:]}"
    return run.returncode != 0


if __name__ == "__main__":
    sys.exit(main())
