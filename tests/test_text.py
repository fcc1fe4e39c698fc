"""The embedded text encoder: its vocabulary, and what it makes of any prompt."""

import pytest
import torch

from motionstream.model.text import VOCABULARY, EffectTextEncoder
from motionstream.training.effects import EFFECTS


@pytest.fixture(scope="module")
def encoder():
    return EffectTextEncoder(text_dim=8).eval()


def test_the_documented_words_are_the_effects_shown_in_training(encoder):
    assert set(encoder.vocabulary) == set(EFFECTS) == set(VOCABULARY)


def test_synonyms_case_and_fillers_do_not_matter(encoder):
    torch.testing.assert_close(encoder.encode("A FOGGY scene at Night!"), encoder.encode("fog night"))
    assert encoder.unknown("a foggy dragon at night, dragon") == ["dragon"]
    assert encoder.unknown("Café, ÜBER 雪 и снег; snow_fog 2") == ["café", "über", "雪", "и", "снег"]


def test_every_prompt_that_names_effects_has_the_same_shape_and_effects_differ(encoder):
    assert {tuple(encoder.encode(prompt).shape) for prompt in ("fog", "cold fog", " ".join(VOCABULARY))} == {(1, 4, 8)}
    assert {tuple(encoder.encode(prompt).shape) for prompt in ("", "ночь", "a dragon")} == {(1, 1, 8)}
    full = EffectTextEncoder(text_dim=8, full=True)
    assert torch.equal(full.encode(""), full.embedding.weight[:1].expand(1, 4, 8))
    assert not torch.equal(encoder.encode("fog"), encoder.encode("night"))
    assert torch.equal(encoder.encode("blorp"), encoder.encode(""))


def test_the_effects_of_a_prompt_are_named_once_and_in_order(encoder):
    assert encoder.effects("Snowy night, snow and drizzle!") == ["snow", "night", "rain"]
    assert encoder.effects("a dragon") == []


def test_more_effects_than_it_takes_are_named():
    encoder = EffectTextEncoder()
    prompt = "cold dark vivid fog, then snow at night"
    assert encoder.effects(prompt) == ["cold", "dark", "vivid", "fog"] and len(encoder.tokens(prompt)) == 4
    assert encoder.unknown(prompt) == ["then", "snow", "night"]
