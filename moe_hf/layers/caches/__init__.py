"""What generation keeps between tokens: named states, histories, routing."""
