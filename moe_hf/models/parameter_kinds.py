"""Which parameters an optimizer or a cast to half precision must treat apart, by their names in a model."""

import re

import torch
from transformers import PreTrainedModel

# They set rates, mixes and phases: pulled towards zero they mean something else, not something simpler. The filter of
# Hyena is a function of the lag, which its authors let nothing decay.
NOT_DECAYED = re.compile(r"\.(A_log|D|dt_bias|time_\w+|x_[rwkvag]|k_k|k_a|r_k)$|\.filter\.")

# Exponents of recurrences, whose error grows with the sequence (Gu and Dao's and Peng et al.'s code keep them so), and
# the filter of Hyena, in which half precision makes one of thousands of neighbouring lags. As transformers searches for
# them: each a piece of a name.
IN_FLOAT32 = ("A_log", "mixer.D", "dt_bias", "time_decay", "time_first", "mixer.filter")


class KnowsParameterKinds(PreTrainedModel):
    """A model that says so to optimizers, and obeys when its weights are fresh."""

    def post_init(self) -> None:
        """As in transformers; fresh weights obey `_keep_in_fp32_modules_strict` as well."""
        for name, parameter in self.named_parameters():
            if parameter.dtype in (torch.bfloat16, torch.float16) and any(part in name for part in IN_FLOAT32):
                parameter.data = parameter.data.float()
        super().post_init()

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that no optimizer should decay, as timm's models say it."""
        return {name for name, _ in self.named_parameters() if NOT_DECAYED.search(name)}
