"""Ground floor: errors, optional packages, registries and protocols that every other room may lean on."""
