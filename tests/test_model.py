"""The short form of tests/soak.py, which `make soak` runs long: a whole server against the model, always the same stories."""

import pytest
import soak


@pytest.mark.parametrize("store, stories", [("memory", 60), ("sqlite", 40), ("redis", 12)])
def test_whatever_is_done_every_feed_is_given_and_every_publisher_told_what_the_model_says(store, stories):
    soak.run(store, stories, 60)
