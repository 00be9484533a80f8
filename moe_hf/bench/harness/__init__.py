"""What every measurement shares: timing, spread, memory, the machine, drawing."""
