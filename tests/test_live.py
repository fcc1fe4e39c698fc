"""The WebSocket's server side with browsers that do not read, and starts that never come."""

import socket

import pytest
from app_kit import wait_for
from websockets.exceptions import ConnectionClosed

from motionstream.ui.live import MAX_WAITING, MAX_WAITING_BYTES, SUBPROTOCOL, UNKNOWN_VISITOR


@pytest.fixture
def frozen(visitor):
    """A visitor whose browser has room for little, and reads nothing from now on."""
    visitor.socket.close()
    small = socket.create_connection((visitor.http.base_url.host, visitor.http.base_url.port))
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    visitor.socket = visitor.connect(sock=small, max_queue=1, close_timeout=0.1)
    visitor.expect("picture")
    return visitor


@pytest.mark.parametrize("messages, size", [(2 * MAX_WAITING, 20_000), (60, MAX_WAITING_BYTES // 20)])
def test_browser_that_reads_nothing_is_given_up(site, frozen, messages, size):
    seat = site.live.seat(frozen.session, "drag")
    frozen.start()
    wait_for(lambda: site.paste.live, "the stream")
    outbox = seat._outbox
    for _ in range(messages):
        seat.send({"kind": "note"}, bytes(size))
    wait_for(lambda: not seat.connected and not site.paste.live, "the end of connection and stream", 3)
    assert outbox.empty() and outbox.bytes == 0


def test_stop_of_a_start_that_was_lost_is_answered(visitor):
    visitor.say({"kind": "stop", "run": 3})
    ended = visitor.expect("ended")
    assert ended["run"] == 3 and ended["failed"] and "before the first picture" in ended["text"]
    for run in (2, 3):  # that come after all
        visitor.start(run=run)
        assert visitor.expect("ended")["run"] == run
    visitor.start(run=4)
    assert visitor.chunk()["chunk"] == 0
    visitor.say({"kind": "stop", "run": 4})
    assert visitor.expect("ended") == {"kind": "ended", "run": 4, "text": "", "failed": False}
    assert visitor.quiet(0.3)


def test_shown_pictures_are_numbered(visitor):
    visitor.say({"kind": "example", "name": visitor.picture["name"]})
    again, _ = visitor.expect("picture", binary=True)
    assert again["number"] != visitor.picture["number"]
    visitor.socket.close()
    visitor.socket = visitor.connect()
    assert visitor.expect("picture")["number"] == again["number"]


def test_a_page_has_the_seats_of_the_one_before_and_that_one_has_none(site, visitor):
    first, second = site.visit(), site.visit()
    seat = site.live.seat(first.session, "camera")
    first.start()
    first.chunk(ack=False)
    offered = [SUBPROTOCOL, visitor.token, first.token]
    wrong = visitor.connect("camera", subprotocols=[*offered[:2], "guessed"])  # does nothing
    wrong.recv(5)
    assert site.live.seat(visitor.session, "camera") is not seat
    for one in (wrong, visitor.socket):
        one.close()
    wait_for(lambda: not site.live._visitors[visitor.session].connected, "the end of the page's sockets")
    visitor.socket = visitor.connect(subprotocols=offered)
    visitor.expect("picture")
    assert site.live.seat(visitor.session, "camera") is seat
    wait_for(lambda: not site.paste.live, "the end of the other page's stream")
    with pytest.raises(ConnectionClosed):
        while True:
            first.socket.recv(5)
    with pytest.raises(ConnectionClosed) as closed:
        first.connect().recv(5)
    assert closed.value.rcvd.code == UNKNOWN_VISITOR
    second.connect("transfer", subprotocols=[SUBPROTOCOL, second.token, visitor.token]).recv(5)
    assert site.live.seat(second.session, "camera") is not seat  # it has seats of its own that are in use
    visitor.start(run=2)
    visitor.chunk()
    for other in (first, second):
        other.close()
