"""Sharing stores on the Hugging Face Hub, as dataset repositories."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

from hf_specplug.datastore.manifest import NAME
from hf_specplug.datastore.store import Datastore

_CARD = """---
tags: [hf-specplug, datastore]
---
# {name}

A datastore of [hf-specplug](https://pypi.org/project/hf-specplug): {tokens:,} tokens of
{documents:,} documents, made with the tokenizer of `{tokenizer}`. It makes `model.generate` faster
where the model writes similar text, and never changes the output:

```python
from hf_specplug import attach

attach(model, datastores=["hf://{name}"], tokenizer=tokenizer)
```
"""


def push_to_hub(
    path: str | os.PathLike[str],
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload datastore",
) -> Any:
    """Check a finished store and upload it; returns what the Hub says of the commit.

    Only its own files are uploaded, and a card, if the repository has none.

    Raises:
        StoreError: it is damaged.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses.
    """
    store = Datastore(path)
    store.check()
    api = HfApi(token=token)
    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    if not api.file_exists(repo_id, "README.md", repo_type="dataset"):
        card = _CARD.format(
            name=repo_id,
            tokens=len(store),
            documents=store.documents,
            tokenizer=store.manifest.tokenizer["name"],
        )
        api.upload_file(
            path_or_fileobj=card.encode(),
            path_in_repo="README.md",
            repo_id=repo_id,
            repo_type="dataset",
            commit_message="Datastore card",
        )
    return api.upload_folder(
        folder_path=str(store.path),
        repo_id=repo_id,
        repo_type="dataset",
        allow_patterns=sorted(store.manifest.files()),
        delete_patterns=["*.npy"],  # of an earlier state
        commit_message=commit_message,
    )


def from_hub(
    repo_id: str,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Datastore:
    """Download a store, if it is not there already, compare its checksums, and open it.

    Args:
        cache_dir: where stores are kept; the user's cache if not given.

    Raises:
        StoreError: what was downloaded is no store, or is damaged.
        huggingface_hub.errors.HfHubHTTPError: there is no such repository, or no access.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(cache_dir) if cache_dir is not None else Path(home) / "hf_specplug" / "hub"
    folder = cache / f"{repo_id.replace('/', '--')}@{revision or 'main'}"
    snapshot_download(
        repo_id,
        repo_type="dataset",
        revision=revision,
        token=token,
        local_dir=str(folder),  # plain files: the Hub's own cache has links, which stores refuse
        allow_patterns=[NAME, "*.npy"],
    )
    store = Datastore(folder)
    store.check()
    return store
