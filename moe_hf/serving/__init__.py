"""An OpenAI-compatible HTTP server around finished models, built on transformers' own."""
