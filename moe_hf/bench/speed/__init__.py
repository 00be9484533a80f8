"""How fast the routers, the experts and what is built of them are, against transformers' own and a dense layer."""
