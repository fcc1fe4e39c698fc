"""The embedded student's text encoder: a documented vocabulary of light and weather, one learned vector a word.

The small student never saw captions, only clips under these effects, so it reads nothing else: other words are passed
over (`unknown` names them, so that an interface can say so). An empty prompt asks for the picture as it is.
"""

import re

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

VOCABULARY = {  # effect -> other words for it
    "night": ("nighttime", "midnight", "moonlight"),
    "sunset": ("sunrise", "dusk", "dawn", "golden"),
    "sepia": ("vintage", "antique"),
    "monochrome": ("grayscale", "greyscale", "noir"),
    "cold": ("winter", "icy", "cool"),
    "warm": ("summer", "autumn"),
    "bright": ("sunny", "overexposed"),
    "dark": ("darker", "gloomy", "shadow"),
    "vivid": ("colorful", "colourful", "saturated"),
    "fog": ("foggy", "mist", "misty", "haze", "hazy"),
    "snow": ("snowy", "snowing", "snowfall", "flakes", "blizzard"),
    "rain": ("rainy", "raining", "rainfall", "drizzle", "shower"),
}
FALLING = frozenset(("snow", "rain"))  # effects of fine detail; the others are of light alone
FILLERS = frozenset(
    "a an and at by day falling heavy in it its light of on scene the to under very weather with".split()
)


class EffectTextEncoder(ModelMixin, ConfigMixin):
    """Prompt -> [1, length, text_dim]: the vectors of the effects named, in order.

    The rest is the vector of "nothing". Of a prompt that names no effect it is that vector alone, [1, 1, text_dim]:
    attention to many that are alike is attention to one. full: not then either, instead of an encoder that always
    gives as many.
    """

    @register_to_config
    def __init__(
        self, text_dim: int = 64, length: int = 4, vocabulary: tuple[str, ...] = tuple(VOCABULARY), full: bool = False
    ):
        super().__init__()
        self.embedding = nn.Embedding(1 + len(vocabulary), text_dim)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return tuple(self.config.vocabulary)

    def effects(self, prompt: str) -> list[str]:
        """The effects named, in order, each once, at most `length`."""
        named = dict.fromkeys(effect for word in _words(prompt) if (effect := self._effect(word)))
        return list(named)[: self.config.length]

    def tokens(self, prompt: str) -> list[int]:
        """Their numbers, 1 and up."""
        return [1 + self.vocabulary.index(effect) for effect in self.effects(prompt)]

    def unknown(self, prompt: str) -> list[str]:
        """The words of `prompt` that mean nothing to this model, or are too many for it."""
        taken, words = self.effects(prompt), dict.fromkeys(_words(prompt))
        return [word for word in words if word not in FILLERS and self._effect(word) not in taken]

    def encode(self, prompt: str) -> Tensor:
        tokens = self.tokens(prompt)
        length = self.config.length if tokens or self.config.full else 1
        padded = tokens + [0] * (length - len(tokens))
        return self.embedding(torch.tensor([padded], device=self.embedding.weight.device))

    def words(self, effect: str) -> tuple[str, ...]:
        """All that name it."""
        return effect, *VOCABULARY.get(effect, ())

    def _effect(self, word: str) -> str | None:
        return next((effect for effect in self.vocabulary if word in self.words(effect)), None)


def _words(prompt: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", prompt.lower())  # of any script: what is not known is to be named whole
