"""Model families: the skeleton, its heads, upcycling, Auto registration and parameter counts."""
