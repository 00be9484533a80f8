"""What a run is trained on: sources, documents, packed blocks, and streams that resume where they stood."""
