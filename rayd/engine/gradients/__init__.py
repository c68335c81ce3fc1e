"""Where the gradient of the synthetic set comes from: one module a kind of source."""
