"""Uses of distilled sets beyond training one network: each a function, a command and a chart.

- `rayd.applications.ranking`: does the set rank architectures as the whole data do?
- `rayd.applications.continual`: classes that come one group after another, with a memory of a few
  images for each class seen.
"""
