"""MegaByte: a global decoder over patches of bytes and a local one within them."""
