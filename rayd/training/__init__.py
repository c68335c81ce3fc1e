"""Networks trained: what they learn from, in which batches and views, by which loss, and how they
resume.
"""
