"""What signals do, by sending real ones to this process."""

import os
import signal
import sys
import time

import pytest

from jaxflow.stop import Stop, Stopped


@pytest.fixture
def stop(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # it is put back
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    listening = Stop()
    listening.listen()
    yield listening
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_before_there_is_state_a_signal_ends_the_program(stop, number, code):
    with pytest.raises(Stopped, match=f"stopped by {number.name}") as stopped:
        send(number)
    assert stopped.value.exit_code == code and not stop.wished


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_deferred_signal_is_a_wish_and_the_second_ends_the_program(stop, number, code):
    stop.defer()
    assert not stop.wished and stop.exit_code == 0
    send(number)
    assert stop.wished and stop.exit_code == code
    with pytest.raises(Stopped):
        send(signal.SIGTERM)


def test_a_signal_whose_exception_is_lost_in_a_finaliser_comes_again(stop):
    class Finalised:
        def __del__(self):
            send(signal.SIGTERM)
            raise AssertionError("the signal was not received here")

    deadline = time.monotonic() + 60
    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        del Finalised().__dict__
        while time.monotonic() < deadline:
            time.sleep(0.01)


def test_a_signal_while_the_program_ends_is_left_to_the_system(stop):
    with pytest.raises(Stopped):
        send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_no_handler_of_errors_swallows_it():
    assert not issubclass(Stopped, Exception)
