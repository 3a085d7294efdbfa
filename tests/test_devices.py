"""All devices: where each is registered, what it wants, and whether it is there."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pere.devices import Devices


def test_a_device_that_was_never_seen_is_not_known():
    devices = Devices()
    assert devices.get("d1") is None
    assert devices.remove("d1", now=0.0) is None
    assert devices.known == {}


def test_a_device_is_one_on_all_its_channels():
    devices = Devices()
    device = devices.register("d1", "orders")
    assert devices.register("d1", "news") is device is devices.get("d1") is devices.add("d1")
    assert device.channels == ("orders", "news")
    assert devices.registrations == 2


def test_who_registers_again_counts_once():
    devices = Devices()
    devices.register("d1", "orders")
    assert devices.register("d1", "orders").channels == ("orders",)
    assert devices.registrations == 1


def test_a_device_that_is_registered_nowhere_and_has_no_feed_is_forgotten():
    devices = Devices()
    device = devices.register("d1", "orders")
    devices.register("d1", "news")
    devices.unregister(device, "orders")
    assert (device.channels, devices.registrations) == (("news",), 1)
    assert devices.get("d1") is device
    devices.unregister(device, "news")
    assert devices.get("d1") is None


def test_a_device_that_has_a_feed_is_not_forgotten():
    devices = Devices()
    device = devices.register("d1", "orders")
    devices.open(device, "feed")
    devices.unregister(device, "orders")
    assert devices.get("d1") is device


# What is yet to be born


def test_a_device_that_wants_a_pattern_is_found_by_the_pattern():
    devices = Devices()
    device = devices.want("d1", "orders.*")
    devices.want("d1", "orders.*")
    devices.want("d2", "orders.*")
    devices.want("d1", "news.**")
    assert device.patterns == ("orders.*", "news.**")
    assert devices.patterns == {"orders.*": {"d1", "d2"}, "news.**": {"d1"}}
    assert devices.registrations == 3


def test_who_is_forgotten_wants_nothing_any_more():
    devices = Devices()
    devices.want("d1", "orders.*")
    devices.want("d2", "orders.*")
    devices.remove("d1", now=0.0)
    assert devices.patterns == {"orders.*": {"d2"}}
    devices.remove("d2", now=0.0)
    assert devices.patterns == {}
    assert devices.registrations == 0


def test_who_waits_in_vain_for_too_long_is_found_by_looking_at_a_few_at_a_time():
    devices = Devices()
    for n in range(10):
        devices.want(f"d{n}", "never.*").seen = float(n)
    devices.register("d0", "c")
    devices.open(devices.add("d1"), "feed")
    found = [device.name for _ in range(4) for device in devices.quiet_since(5.0, 3)]
    assert found == ["d2", "d3", "d4"]  # by twelve looks at ten devices
    for name in ("d2", "d3", "d4"):
        devices.forget(devices.known[name])
    assert (devices.registrations, devices.patterns) == (8, {"never.*": {"d0", "d1", "d5", "d6", "d7", "d8", "d9"}})
    assert devices.quiet_since(5.0, 100) == []
    assert not devices.removed_since("d2", 0.0)  # so it may come back at once


# Presence


def test_a_device_is_online_as_long_as_it_has_a_feed():
    devices = Devices()
    device = devices.add("d1")
    devices.open(device, "first")
    devices.open(device, "second")
    assert (device.feeds, devices.online) == (("first", "second"), 1)
    devices.close(device, "first")
    assert (device.feeds, devices.online) == (("second",), 1)
    devices.close(device, "second")
    assert (device.feeds, devices.online) == ((), 0)


def test_a_feed_that_is_closed_twice_counts_once():
    devices = Devices()
    device, other = devices.add("d1"), devices.add("d2")
    devices.open(device, "feed")
    devices.open(other, "another")
    devices.close(device, "feed")
    devices.close(device, "feed")
    assert devices.online == 1


class Counting(RuleBasedStateMachine):
    """Devices come, go, register and listen in any order."""

    names = st.sampled_from(["d1", "d2", "d3"])
    channels = st.sampled_from(["a", "b"])

    def __init__(self):
        super().__init__()
        self.devices = Devices()
        self.feeds = []

    @rule(name=names, channel=channels)
    def register(self, name, channel):
        assert channel in self.devices.register(name, channel).channels

    @rule(name=names, channel=channels)
    def unregister(self, name, channel):
        device = self.devices.get(name)
        if device is not None and channel in device.channels:
            self.devices.unregister(device, channel)
            assert channel not in device.channels

    @rule(name=names, pattern=st.sampled_from(["x.*", "**"]))
    def want(self, name, pattern):
        assert pattern in self.devices.want(name, pattern).patterns

    @rule()
    def forget_who_waits_in_vain(self):
        for device in self.devices.quiet_since(1.0, 2):
            self.devices.forget(device)

    @rule(name=names)
    def remove(self, name):
        device = self.devices.get(name)
        assert self.devices.remove(name, now=0.0) is device
        assert self.devices.get(name) is None

    @rule(name=names)
    def listen(self, name):
        self.feeds.append((self.devices.add(name), object()))
        self.devices.open(*self.feeds[-1])

    @rule(data=st.data())
    def hang_up(self, data):
        if self.feeds:
            self.devices.close(*self.feeds.pop(data.draw(st.integers(0, len(self.feeds) - 1))))

    @invariant()
    def the_tallies_are_what_counting_finds(self):
        assert self.devices.registrations == sum(len(device.channels) + len(device.patterns) for device in self.devices.known.values())
        wanted = [(name, pattern) for name, device in self.devices.known.items() for pattern in device.patterns]
        assert sorted(wanted) == sorted((name, pattern) for pattern, names in self.devices.patterns.items() for name in names)
        assert self.devices.online == len({device for device, _ in self.feeds})


TestCounting = Counting.TestCase
TestCounting.settings = settings(max_examples=60, stateful_step_count=30)


# Removal


def test_what_was_known_of_a_removed_device_is_in_the_answer():
    devices = Devices()
    devices.register("d1", "orders")
    devices.register("d1", "news")
    device = devices.remove("d1", now=100.0)
    assert device.channels == ("orders", "news")
    assert devices.get("d1") is None
    assert devices.registrations == 0


def test_a_removal_is_remembered_for_as_long_as_one_asks_for():
    devices = Devices()
    devices.add("d1")
    devices.remove("d1", now=100.0)
    assert devices.removed_since("d1", 50.0)
    assert devices.removed_since("d1", 100.0)
    assert not devices.removed_since("d1", 100.1)
    assert not devices.removed_since("d1", 50.0)  # once nobody cares, it is dropped


def test_who_comes_back_was_not_removed():
    devices = Devices()
    devices.add("d1")
    devices.remove("d1", now=100.0)
    devices.add("d1")
    assert not devices.removed_since("d1", 50.0)


def test_an_old_removal_makes_way_and_a_newer_one_stays():
    devices = Devices()
    for moment, name in enumerate(["d1", "d2", "d1", "d3"]):
        devices.add(name)
        devices.remove(name, now=float(moment))
    assert not devices.removed_since("d2", 2.0)
    assert devices.removed_since("d1", 2.0)
    assert devices.removed_since("d3", 2.0)
    assert not devices.removed_since("d2", 0.0)


# Paging


def test_devices_are_paged_in_the_order_of_their_names():
    devices = Devices()
    for name in ("d3", "d1", "d2", "D4"):
        devices.add(name)
    assert [device.name for device in devices.after("", 3)] == ["D4", "d1", "d2"]
    assert [device.name for device in devices.after("d2", 3)] == ["d3"]
    assert [device.name for device in devices.after("d3", 3)] == []
