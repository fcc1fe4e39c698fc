"""What reads prompt and picture for Wan: UMT5 for text, CLIP's vision tower for the image (Wan 2.1 only).

Both are transformers' own classes, under their own weight names. They run once per prompt or picture, so on a GPU they
stay in the CPU's memory and visit the GPU only for that (`device.visiting`), or run where they are if there is no room.
"""

import html
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from motionstream.errors import InputError, one_line

PROMPT_TOKENS = 512  # that the transformer was trained with; what is not text is zero
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class UMT5TextEncoder(UMT5EncoderModel):
    """Prompt -> [1, PROMPT_TOKENS, d_model], zero after the prompt's own tokens.

    Its vocabulary lies beside its folder, in `tokenizer`, as in diffusers' layout.
    """

    visits = True
    tokenizer = None

    def __init__(self, config: UMT5Config | None = None, **keywords: Any):
        super().__init__(config or UMT5Config(**keywords))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "UMT5TextEncoder":
        return cls(UMT5Config.from_dict(config))

    def load_beside(self, folder: Path) -> None:
        """Reads the vocabulary that belongs to the weights in `folder`."""
        beside = folder.parent / "tokenizer"
        if not (beside / "tokenizer.json").is_file():
            raise InputError(f"{beside} has no tokenizer.json: the text encoder needs its vocabulary")
        # As the file has it: the class that published folders name, T5's, would split unknown characters its own way.
        try:
            self.tokenizer = PreTrainedTokenizerFast.from_pretrained(beside, local_files_only=True)
        except ValueError as error:  # no JSON: cut short, or a pointer to where it is kept
            raise InputError(f"{beside} is not whole ({one_line(error)}): fetch its .json files again") from error

    def save_pretrained(self, folder: str | Path, **keywords: Any) -> None:
        super().save_pretrained(folder, **keywords)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(Path(folder).parent / "tokenizer")

    def encode(self, prompt: str) -> Tensor:
        """Only the prompt's own tokens are run: padding is masked and would change nothing."""
        text = " ".join(html.unescape(html.unescape(prompt)).split())
        tokens = self.tokenizer(text, truncation=True, max_length=PROMPT_TOKENS, return_tensors="pt").input_ids
        found = self(tokens.to(self.device)).last_hidden_state
        return F.pad(found, (0, 0, 0, PROMPT_TOKENS - found.shape[1]))


class CLIPImageEncoder(CLIPVisionModel):
    """Picture -> [1, 1 + patches, hidden_size]: the last layer but one, as Wan 2.1 image-to-video wants it."""

    visits = True
    stored_prefix = "vision_model."  # of the names in published files

    def __init__(self, config: CLIPVisionConfig | None = None, **keywords: Any):
        super().__init__(config or CLIPVisionConfig(**keywords))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "CLIPImageEncoder":
        return cls(CLIPVisionConfig.from_dict(config))

    def encode(self, picture: Tensor) -> Tensor:
        """picture: [3, H, W] in [-1, 1]; squeezed to a square as a whole, not cropped, as in Wan's own code."""
        side = self.config.image_size
        square = F.interpolate(picture[None].float(), size=(side, side), mode="bicubic", align_corners=False) / 2 + 0.5
        mean, deviation = (square.new_tensor(x).view(1, 3, 1, 1) for x in (CLIP_MEAN, CLIP_DEVIATION))
        pixels = ((square - mean) / deviation).to(self.device, self.dtype)
        return self(pixels, output_hidden_states=True).hidden_states[-2]
