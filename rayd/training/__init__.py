"""Training of networks: label sources, batches, views, losses and resumption."""
