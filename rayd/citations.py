"""BibTeX entries of data, networks, augmentation and selections used by recipes."""

from __future__ import annotations

from rayd import methods
from rayd.config import NetworkSettings, Recipe
from rayd.methods import Method

DSA = """@inproceedings{zhao2021dsa,
  title     = {Dataset Condensation with Differentiable Siamese Augmentation},
  author    = {Zhao, Bo and Bilen, Hakan},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2021}
}"""

DATA = {
    "digits": """@misc{alpaydin1998digits,
  title        = {Optical Recognition of Handwritten Digits},
  author       = {Alpaydin, E. and Kaynak, C.},
  howpublished = {UCI Machine Learning Repository},
  year         = {1998}
}""",
    "mnist": """@article{lecun1998mnist,
  title   = {Gradient-Based Learning Applied to Document Recognition},
  author  = {LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner, Patrick},
  journal = {Proceedings of the IEEE},
  volume  = {86},
  number  = {11},
  pages   = {2278--2324},
  year    = {1998}
}""",
    "fashion_mnist": """@article{xiao2017fashion,
  title   = {Fashion-{MNIST}: a Novel Image Dataset for Benchmarking Machine Learning Algorithms},
  author  = {Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  journal = {arXiv:1708.07747},
  year    = {2017}
}""",
    "svhn": """@inproceedings{netzer2011svhn,
  title     = {Reading Digits in Natural Images with Unsupervised Feature Learning},
  author    = {Netzer, Yuval and Wang, Tao and Coates, Adam and Bissacco, Alessandro and Wu, Bo and Ng, Andrew Y.},
  booktitle = {NIPS Workshop on Deep Learning and Unsupervised Feature Learning},
  year      = {2011}
}""",
    "cifar": """@techreport{krizhevsky2009cifar,
  title       = {Learning Multiple Layers of Features from Tiny Images},
  author      = {Krizhevsky, Alex},
  institution = {University of Toronto},
  year        = {2009}
}""",
    "imagenet": """@inproceedings{deng2009imagenet,
  title     = {{ImageNet}: A Large-Scale Hierarchical Image Database},
  author    = {Deng, Jia and Dong, Wei and Socher, Richard and Li, Li-Jia and Li, Kai and Fei-Fei, Li},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2009}
}""",
}
"""Entries by the prefix of a data set's name."""

WIDE_RESNET = """@inproceedings{zagoruyko2016wide,
  title     = {Wide Residual Networks},
  author    = {Zagoruyko, Sergey and Komodakis, Nikos},
  booktitle = {British Machine Vision Conference (BMVC)},
  year      = {2016}
}"""

NETWORKS = {
    "deit_": """@inproceedings{touvron2021deit,
  title     = {Training Data-Efficient Image Transformers & Distillation through Attention},
  author    = {Touvron, Hugo and Cord, Matthieu and Douze, Matthijs and Massa, Francisco and Sablayrolles, Alexandre and
               J{\'e}gou, Herv{\'e}},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2021}
}""",
    "convnet": """@inproceedings{gidaris2018convnet,
  title     = {Dynamic Few-Shot Visual Learning without Forgetting},
  author    = {Gidaris, Spyros and Komodakis, Nikos},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2018}
}""",
    "lenet": DATA["mnist"],
    "alexnet": """@inproceedings{krizhevsky2012alexnet,
  title     = {{ImageNet} Classification with Deep Convolutional Neural Networks},
  author    = {Krizhevsky, Alex and Sutskever, Ilya and Hinton, Geoffrey E.},
  booktitle = {Advances in Neural Information Processing Systems (NIPS)},
  year      = {2012}
}""",
    "vgg": """@inproceedings{simonyan2015vgg,
  title     = {Very Deep Convolutional Networks for Large-Scale Image Recognition},
  author    = {Simonyan, Karen and Zisserman, Andrew},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2015}
}""",
    "mobilenet_v2": """@inproceedings{sandler2018mobilenetv2,
  title     = {{MobileNetV2}: Inverted Residuals and Linear Bottlenecks},
  author    = {Sandler, Mark and Howard, Andrew and Zhu, Menglong and Zhmoginov, Andrey and Chen, Liang-Chieh},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2018}
}""",
    "shufflenet_v2": """@inproceedings{ma2018shufflenetv2,
  title     = {{ShuffleNet V2}: Practical Guidelines for Efficient {CNN} Architecture Design},
  author    = {Ma, Ningning and Zhang, Xiangyu and Zheng, Hai-Tao and Sun, Jian},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year      = {2018}
}""",
    "wide_resnet": WIDE_RESNET,
    "wrn": WIDE_RESNET,
    "efficientnet": """@inproceedings{tan2019efficientnet,
  title     = {{EfficientNet}: Rethinking Model Scaling for Convolutional Neural Networks},
  author    = {Tan, Mingxing and Le, Quoc V.},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2019}
}""",
    "resnet": """@inproceedings{he2016resnet,
  title     = {Deep Residual Learning for Image Recognition},
  author    = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2016}
}""",
}
"""Entries by the prefix of an architecture's name."""

SELECTIONS = {
    "forgetting": """@inproceedings{toneva2019forgetting,
  title     = {An Empirical Study of Example Forgetting during Deep Neural Network Learning},
  author    = {Toneva, Mariya and Sordoni, Alessandro and Tachet des Combes, Remi and Trischler, Adam and Bengio, Yoshua and
               Gordon, Geoffrey J.},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2019}
}""",
    "el2n": """@inproceedings{paul2021diet,
  title     = {Deep Learning on a Data Diet: Finding Important Examples Early in Training},
  author    = {Paul, Mansheej and Ganguli, Surya and Dziugaite, Gintare Karolina},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2021}
}""",
    "difficulty": """@inproceedings{sorscher2022pruning,
  title     = {Beyond Neural Scaling Laws: Beating Power Law Scaling via Data Pruning},
  author    = {Sorscher, Ben and Geirhos, Robert and Shekhar, Shashank and Ganguli, Surya and Morcos, Ari S.},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2022}
}""",
    "herding": """@inproceedings{welling2009herding,
  title     = {Herding Dynamical Weights to Learn},
  author    = {Welling, Max},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2009}
}""",
    "rded": """@inproceedings{sun2024rded,
  title     = {On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation Paradigm},
  author    = {Sun, Peng and Shi, Bei and Yu, Daiwei and Lin, Tao},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2024}
}""",
    "k-center": """@inproceedings{sener2018coreset,
  title     = {Active Learning for Convolutional Neural Networks: A Core-Set Approach},
  author    = {Sener, Ozan and Savarese, Silvio},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2018}
}""",
}
"""Entries of selections of real images, by name."""


def citations(recipe: Recipe, method_citation: str) -> list[str]:
    """List the BibTeX entries of everything that a recipe uses, the method's first, each once."""
    method = methods.build(recipe)
    selections = [recipe.synthetic.init, *recipe.evaluation.baselines]
    found = [method_citation]
    found += [entry for prefix, entry in DATA.items() if recipe.data.name.startswith(prefix)]
    for network in _architectures(recipe, method):
        name = network.name.removeprefix("torchvision/").removeprefix("timm/")
        found += [entry for prefix, entry in NETWORKS.items() if name.startswith(prefix)]
    found += [DSA] if any(_augmentations(recipe, method)) else []
    found += [SELECTIONS[name] for name in selections if name in SELECTIONS]
    return list(dict.fromkeys(found))


def _architectures(recipe: Recipe, method: Method) -> list[NetworkSettings]:
    """Networks of a recipe; observers only where something is computed in them."""
    networks: list[NetworkSettings] = []
    if "observers.networks" not in method.unused:
        networks += recipe.observers.networks
    if method.needs_experts:
        networks.append(recipe.experts.network)
    return [*networks, *(recipe.labels.networks or ()), *recipe.evaluation.networks]


def _augmentations(recipe: Recipe, method: Method) -> list[str | None]:
    """Augmentation strategies of a recipe, of students, observers and experts."""
    strategies = [recipe.evaluation.augmentation]
    if "observers.augmentation" not in method.unused:
        strategies.append(recipe.observers.augmentation)
    if method.needs_experts:
        strategies += [recipe.experts.augmentation, recipe.objective.get("augmentation")]
    return strategies
