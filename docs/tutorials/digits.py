# %% [markdown]
# # Digits, from data to report
#
# A script in cells (py:percent): editors and Jupytext open it as a notebook, and `python digits.py` runs it. It takes
# half a minute on two cores. Results are written below the current directory.

# %%
import torch

# %% [markdown]
# ## Your own data, as tensors
#
# Images (n, channels, height, width) in [0, 1] with their classes. Here they are the handwritten digits of
# scikit-learn; a torch data set, arrays or a Hugging Face data set would work as well.
# %%
from sklearn.datasets import load_digits

import rayd

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1)
labels = torch.tensor(digits.target)
train = (images[:1400], labels[:1400])
test = (images[1400:], labels[1400:])

# %% [markdown]
# ## Distil
#
# One image per class, by distribution matching (DM), with small networks and few steps. The
# callback collects the losses. At the end of a cell, a run displays its images and its accuracies.

# %%
losses = []


class Losses(rayd.callbacks.RunCallback):
    """Keeps the loss of every logged step."""

    def on_step(self, step: rayd.callbacks.Step) -> None:
        """Append a loss."""
        if step.stage == "synthesize":
            losses.append(float(step.metrics["loss"]))


settings = {
    "observers.networks": [{"name": "convnet", "depth": 2, "width": 16}],
    "observers.pool": 4,
    "synthesis.steps": 40,
    "synthesis.log_every": 5,
    "evaluation.networks": [{"name": "convnet", "depth": 2, "width": 16}],
    "evaluation.seeds": 2,
    "evaluation.epochs": 60,
    "evaluation.baselines": ["random"],
}
run = rayd.distill(
    train=train,
    test=test,
    method="dm",
    ipc=1,
    out="runs/tutorial",
    cache="store",
    callbacks=[Losses()],
    settings=settings,
)
run

# %% [markdown]
# ## Look at the result
#
# In a notebook the figures are displayed. Accuracies are fractions of the test images.

# %%
run.distilled.plot()

# %%
run.plot()

# %%
run.report.plot()

# %%
print(run.report.text())

# %% [markdown]
# ## Train on it
#
# The images are normalised, so the test images must be normalised in the same way.

# %%
distilled = rayd.load("runs/tutorial")
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
for _ in range(200):
    for batch, classes in distilled.dataloader(batch_size=10):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(batch), classes).backward()
        optimizer.step()
predicted = network(distilled.normalization.forward_unit(test[0])).argmax(dim=1)
accuracy = (predicted == test[1]).float().mean().item()
print(f"a linear classifier, trained on 10 images: {accuracy:.3f}")

# %% [markdown]
# ## One of its losses in a loop of your own
#
# `rayd.terms` compares features of any network; here the means of each class.

# %%
term = rayd.terms.MeanMatching()
torch.manual_seed(0)
features = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten())
learned = torch.rand(10, 1, 8, 8, requires_grad=True)
learned_labels = torch.arange(10)
with torch.no_grad():
    real_features = features(train[0])
optimizer = torch.optim.Adam([learned], lr=0.05)
own_losses = []
for _ in range(50):
    loss = term(real_features, features(learned), train[1], learned_labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    own_losses.append(loss.item())
print(f"loss {own_losses[0]:.3f} at first, {own_losses[-1]:.3f} at last")

# %% [markdown]
# ## A page to share

# %%
page = rayd.report(run)
print(page)
