"""The rules of the node: when it follows versions, what it says of itself, and rounds."""

from typing import Any

import msgspec
import pytest

from hedgerow.core import names
from hedgerow.core.effects import Announce, Follow, JobFailed, LinkDown, LinkUp, Saved, Unfollow
from hedgerow.core.messages import Chunk, Descriptor, NodeState, Offer, Receipt, Receipts
from hedgerow.core.rules import LocalTraining
from tests.protocol.node_bench import (
    Bench,
    descriptor,
    followed,
    gateway_state,
    issued_one,
    parts,
    trains,
    unfollowed,
)
from tests.protocol.scenarios import (
    SECOND_US,
    announced,
    make_books,
    recorded,
    saves,
    sent,
    timers,
)

VERSIONS = "gw/gw-1/plan/model"

# Versions are followed only while it waits for work.


def test_it_hears_of_no_versions_from_the_beginning_of_a_training_to_its_update() -> None:
    bench = Bench().online()
    assert followed(bench.effects) == {VERSIONS}
    effects = bench.fetch(0)
    (job,) = trains(effects)
    assert effects.index(Unfollow(VERSIONS)) > effects.index(job)
    saving = bench.trained(job)
    assert VERSIONS not in followed(saving), "the update is not durable yet"
    effects = bench.done(Saved(saves(saving)[0].job))
    assert sent(effects, Chunk)
    assert followed(effects) == {VERSIONS}


def test_a_version_that_was_kept_for_it_is_fetched_and_trained() -> None:
    bench, _ = issued_one()
    effects = bench.fetch(3)
    assert trains(effects)
    assert VERSIONS in unfollowed(effects)


def test_it_follows_versions_once_and_not_with_every_message() -> None:
    bench, _ = issued_one()
    again = bench.hear("gw/gw-1", gateway_state("gw-1", nodes=3)) + bench.timer("resend")
    assert not [effect for effect in again if isinstance(effect, (Follow, Unfollow))]


def test_a_resting_node_hears_of_no_versions() -> None:
    bench = Bench(sleep_s=30.0).online()
    (job,) = trains(bench.fetch(0))
    assert VERSIONS not in followed(bench.issue(job) + bench.timer("resend"))
    bench.now_us += 30 * SECOND_US
    assert followed(bench.timer("rest")) == {VERSIONS}


def test_after_a_failed_training_it_hears_of_versions_when_it_tries_again() -> None:
    bench = Bench().online()
    (job,) = trains(bench.fetch(0))
    assert followed(bench.done(JobFailed(job.job, "out of memory"))) == set()
    bench.now_us += 10 * SECOND_US
    effects = bench.timer("rest")
    assert followed(effects) == {VERSIONS}
    assert trains(effects)


def test_a_node_whose_outbox_is_full_hears_of_versions_when_there_is_room() -> None:
    bench, update_id = issued_one(outbox_updates=1)
    assert VERSIONS not in followed(bench.effects)
    effects = bench.hear("gw", Receipts(receipts=[Receipt(update_id, "settled")]))
    assert followed(effects) == {VERSIONS}


def test_one_that_moves_while_it_trains_hears_of_versions_when_it_is_done() -> None:
    bench = Bench(home="gw-2").online()
    (job,) = trains(bench.fetch(0))
    effects = bench.hear("gw/gw-2", gateway_state("gw-2"))
    assert recorded(effects, "rehomed")
    assert not [effect for effect in effects if isinstance(effect, (Follow, Unfollow))]
    effects = bench.issue(job)
    assert followed(effects) == {"gw/gw-2/plan/model"}
    assert sent(effects, Chunk, "gw/gw-2")


# What it says of itself.


def states(effects: list[Any]) -> list[str]:
    return [state.state for state in announced(effects, NodeState)]


def test_every_training_is_announced_at_once() -> None:
    bench = Bench().online()
    for version in range(3):
        effects = bench.fetch(version)
        (job,) = trains(effects)
        assert states(effects) == ["training"]
        assert states(bench.issue(job)) == []


def test_a_later_announcement_tells_what_is_true_then_and_is_the_only_one() -> None:
    bench, update_id = issued_one()
    assert "presence" in timers(bench.effects)
    effects = bench.hear("gw", Receipts(receipts=[Receipt(update_id, "settled")]))
    assert "presence" not in timers(effects), "one is due already"
    (state,) = announced(bench.timer("presence"), NodeState)
    assert (state.state, state.counters["applied"]) == ("ready", 1)
    quiet = bench.timer("resend") + bench.hear("gw/gw-1", gateway_state("gw-1", nodes=2))
    assert "presence" not in timers(quiet), "nothing has changed"


def test_offline_it_says_nothing_and_all_when_it_is_back() -> None:
    bench, _ = issued_one(offline_updates=1)
    effects = bench.hear(names.BROKER, LinkDown())
    assert trains(effects)
    effects = effects + bench.timer("presence") + bench.timer("resend")
    assert not [effect for effect in effects if isinstance(effect, Announce)]
    assert states(bench.hear(names.BROKER, LinkUp())) == ["training"]


# Another broker.


def test_gateways_that_a_new_broker_does_not_know_are_forgotten() -> None:
    bench, update_id = issued_one(offline_updates=0)
    bench.hear(names.BROKER, LinkDown())
    assert timers(bench.hear(names.BROKER, LinkUp()))["silence"] == 5 * SECOND_US
    effects = bench.hear("gw/gw-2", gateway_state("gw-2", uplink=False))
    assert followed(effects) == set(), "its own may still be heard"
    effects = bench.timer("silence")
    assert recorded(effects, "rehomed")[0].fields == {"before": "gw-1", "now": "gw-2"}
    assert unfollowed(effects) == {VERSIONS}
    assert followed(effects) == {"gw/gw-2/plan/model"}
    assert sent(effects, Offer, "gw/gw-2")[0].ids == [update_id]
    assert announced(effects, NodeState)[-1].gateway == "gw-2"


def test_gateways_that_were_heard_again_are_kept() -> None:
    bench, _ = issued_one()
    bench.hear(names.BROKER, LinkUp())
    bench.hear("gw/gw-1", gateway_state("gw-1"))
    effects = bench.timer("silence")
    assert not recorded(effects, "rehomed")
    assert not [effect for effect in effects if isinstance(effect, (Follow, Unfollow))]


def test_its_own_gateway_is_kept_while_it_is_known_to_be_lost() -> None:
    bench, _ = issued_one()
    bench.hear(names.BROKER, LinkUp())
    bench.hear("gw/gw-1", gateway_state("gw-1", state="lost"))
    assert not recorded(bench.timer("silence"), "rehomed")
    effects = bench.hear("gw/gw-1", gateway_state("gw-1", boot=2))
    assert sent(effects, Offer, "gw/gw-1")


def test_where_no_gateway_is_heard_it_has_none_until_one_is() -> None:
    bench, update_id = issued_one()
    bench.hear(names.BROKER, LinkUp())
    effects = bench.timer("silence")
    assert recorded(effects, "rehomed")[0].fields == {"before": "gw-1", "now": ""}
    assert unfollowed(effects) == {VERSIONS}
    assert [state.gateway for state in announced(effects, NodeState)] == [""]
    assert not sent(bench.timer("resend"), Offer)
    effects = bench.hear("gw/gw-1", gateway_state("gw-1"))
    assert followed(effects) == {VERSIONS}
    assert sent(effects, Offer, "gw/gw-1")[0].ids == [update_id]


def test_offline_no_gateway_is_forgotten_for_its_silence() -> None:
    bench, _ = issued_one()
    bench.hear(names.BROKER, LinkUp())
    bench.hear(names.BROKER, LinkDown())
    assert not recorded(bench.timer("silence"), "rehomed")


# Rounds.


def sampled(version: int, *sample: str) -> Descriptor:
    return descriptor(version, sample=list(sample))


def fetched(bench: Bench, message: Descriptor) -> list[Any]:
    effects = bench.hear("gw/gw-1", message)
    for part in parts(message.version):
        effects = effects + bench.hear("blob", part)
    return effects


def test_a_node_in_the_sample_trains_once() -> None:
    bench = Bench(offline_updates=2).online()
    (job,) = trains(fetched(bench, sampled(0, "node-1", "node-2")))
    assert trains(bench.issue(job)) == []
    assert trains(bench.hear("gw/gw-1", sampled(0, "node-1"))) == []
    assert trains(bench.hear(names.BROKER, LinkDown())) == [], "nor alone"


@pytest.mark.parametrize("sample", [[], ["node-2"], ["node-10", "node"]])
def test_a_node_outside_the_sample_does_not_train_nor_does_it_alone(sample: list[str]) -> None:
    bench = Bench(offline_updates=2).online()
    effects = fetched(bench, sampled(0, *sample))
    assert recorded(effects, "version_adopted")
    assert trains(effects + bench.hear(names.BROKER, LinkDown())) == []
    assert VERSIONS not in unfollowed(effects), "its turn may come"


def test_a_node_outside_the_sample_fetches_nothing_until_it_is_its_turn() -> None:
    bench = Bench().online()
    assert followed(bench.hear("gw/gw-1", sampled(0, "node-2"))) == set()
    units = followed(bench.hear("gw/gw-1", sampled(0, "node-1")))
    assert units
    assert all(channel.startswith("blob/") for channel in units)
    assert unfollowed(bench.hear("gw/gw-1", sampled(1, "node-2"))) == units


def test_it_trains_as_soon_as_the_sample_is_drawn_anew_and_names_it() -> None:
    bench = Bench().online()
    assert trains(fetched(bench, sampled(0, "node-2"))) == []
    (job,) = trains(bench.hear("gw/gw-1", sampled(0, "node-1")))
    bench.issue(job)
    assert trains(fetched(bench, sampled(1, "node-2"))) == []
    assert trains(fetched(bench, sampled(2, "node-1")))


def test_a_restart_does_not_train_for_the_same_round_again() -> None:
    bench = Bench(make_books(issued=1, last_base_version=0)).online()
    assert trains(fetched(bench, sampled(0, "node-1"))) == []
    assert trains(fetched(bench, sampled(1, "node-1")))


def test_nobody_is_asked_once_the_model_is_finished() -> None:
    bench = Bench().online()
    closed = msgspec.structs.replace(sampled(0, "node-1"), training_open=False)
    assert trains(fetched(bench, closed)) == []


def local(proximal: float) -> LocalTraining:
    return LocalTraining(passes=1, batch_size=8, learning_rate=0.1, proximal=proximal)


@pytest.mark.parametrize(("memory_class", "proximal"), [("", 0.25), ("small", 0.5), ("odd", 0.25)])
def test_the_proximal_term_of_its_memory_class_is_passed_on(
    memory_class: str, proximal: float
) -> None:
    bench = Bench(memory_class=memory_class).online()
    training = {"default": local(0.25), "small": local(0.5)}
    (job,) = trains(fetched(bench, descriptor(0, training=training)))
    assert job.proximal == proximal


def test_without_a_proximal_term_there_is_none() -> None:
    (job,) = trains(Bench().online().fetch(0))
    assert job.proximal == 0
