"""Every fuzzer of `targets.py` for a second or two, and on all that one ever found."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from targets import TARGETS, Target

EXAMPLES = {"http": 150, "routes": 250, "decoder": 300, "frame": 300, "words": 500, "recognised": 300}

# What a fuzzer has found, by what was wrong: the target and the bytes. Each was mended, and stays so.
DEEP = b"[" * 1000 + b"]" * 1000
FINDS: dict[str, tuple[str, bytes]] = {
    "a payload in a batch that is nested too deep": ("routes", b'\x02[{"channel":"c","data":%b}]' % DEEP),
    "a type that is nested too deep to be shown": ("routes", b'\x02[{"channel":"c","data":1,"type":%b}]' % DEEP),
    "a status that is nested too deep": ("routes", b'\x07{"status":%b}' % DEEP),
    "a delay that is nested too deep to be shown": ("routes", b'\x07{"delay":%b}' % DEEP),
    "a place in the order that is nested too deep": ("routes", b'\x0b{"up_to":%b,"channel":"c"}' % DEEP),
    "a kind of body that is nested too deep": ("routes", b'\x16{"url":"https://a.example/","content_type":%b}' % DEEP),
}


@pytest.fixture
def io_loop() -> None:
    """In the place of the one in conftest: a target that needs a loop has its own."""


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    target = TARGETS[request.param]()
    yield target
    target.close()


@pytest.mark.parametrize("target", TARGETS, indirect=True)
def test_any_bytes_are_taken_or_refused(target, request):
    @settings(max_examples=EXAMPLES[request.node.callspec.params["target"]], database=None)
    @given(type(target).examples)
    def run(said: bytes) -> None:
        target(said)

    for said in target.seeds:
        target(said)
    run()


@pytest.mark.parametrize("find", FINDS)
def test_what_was_found_once_is_mended(find):
    name, said = FINDS[find]
    target = TARGETS[name]()
    try:
        target(said)
    finally:
        target.close()
