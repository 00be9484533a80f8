"""Wing: the corpus that the project generates itself, its tokenizers, its chat template and its scoreboard."""
