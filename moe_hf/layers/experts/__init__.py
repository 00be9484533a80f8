"""The stacked experts of a layer and the table of backends that compute them."""
