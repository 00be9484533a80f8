"""Which parameters an optimizer or a cast to half precision must treat apart, by their names in a model."""

import re

# They set rates, mixes and phases: pulled towards zero they mean something else, not something simpler. The filter of
# Hyena is a function of the lag, which its authors let nothing decay.
NOT_DECAYED = re.compile(r"\.(A_log|D|dt_bias|time_\w+|x_[rwkvag]|k_k|k_a|r_k)$|\.filter\.")

# Exponents of recurrences, whose error grows with the sequence (Gu and Dao's and Peng et al.'s code keep them so), and
# the filter of Hyena, in which half precision makes one of thousands of neighbouring lags. As transformers searches for
# them: each a piece of a name.
IN_FLOAT32 = ("A_log", "mixer.D", "dt_bias", "time_decay", "time_first", "mixer.filter")
