"""Whether a mixer remembers: small synthetic tasks, learnt by one small model of each mixer."""
