"""Sharing datastores on the Hugging Face Hub, as dataset repositories."""

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

A datastore for [hf-specplug](https://pypi.org/project/hf-specplug): {tokens:,} tokens of
{documents:,} documents, built with the tokenizer of `{tokenizer}`. It makes `model.generate` faster
where the model writes similar text, and does not change the output:

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
    """Check the checksums of a datastore and upload it.

    Only its own files are uploaded, and a card if the repository has none.

    Args:
        path: folder of the datastore.
        repo_id: dataset repository; it is created if it does not exist.
        private: whether a new repository is private.
        token: access token; the saved one by default.
        commit_message: message of the commit.

    Returns:
        The `huggingface_hub.CommitInfo` of the upload.

    Raises:
        StoreError: the datastore is damaged.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses the request.

    Example:
        >>> push_to_hub("my.store", "me/mine", private=True)  # doctest: +SKIP
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
    """Download a datastore unless it is cached, compare its checksums, and open it.

    Args:
        repo_id: dataset repository.
        revision: branch, tag or commit; "main" by default.
        token: access token; the saved one by default.
        cache_dir: folder for downloaded datastores; one in the user's cache by default.

    Raises:
        StoreError: the repository does not hold a datastore, or a file is damaged.
        huggingface_hub.errors.HfHubHTTPError: the repository does not exist or is not accessible.

    Example:
        >>> store = from_hub("me/mine")  # doctest: +SKIP
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(cache_dir) if cache_dir is not None else Path(home) / "hf_specplug" / "hub"
    folder = cache / f"{repo_id.replace('/', '--')}@{revision or 'main'}"
    snapshot_download(
        repo_id,
        repo_type="dataset",
        revision=revision,
        token=token,
        local_dir=str(folder),  # plain files: the Hub's cache has links, which are refused
        allow_patterns=[NAME, "*.npy"],
    )
    store = Datastore(folder)
    store.check()
    return store
