"""Licences of base models: what lies beside the weights is told, word for word; what isn't there isn't made up."""

import pytest

from distill_system.models import licences
from distill_system.models.licences import licence_of

CARD = "---\ntags:\n- x\nlicense: apache-2.0\n---\nlicense: none of this line\n"


def test_a_packages_model_and_the_package_itself_may_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(licences, "package_folder", lambda *parts: tmp_path / "-".join(parts))
    model = tmp_path / "pack-1.0-abc" / "pack" / "model"
    model.mkdir(parents=True)
    recipe = {"package": "pack", "version": "1.0", "sha256": "abc", "folder": "pack/model"}
    assert licence_of(recipe) is None
    (model / "README.md").write_text(CARD)
    info = tmp_path / "pack-1.0-abc" / "pack-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: pack\nLicense: MIT\nLicense-File: LICENSE\n\nLicense: no\n"
    )
    assert licence_of(recipe) == "pack: its model card says apache-2.0; its package says MIT"
    (info / "METADATA").write_text("Name: pack\nLicense-Expression: MIT OR Apache-2.0\n")
    assert licence_of(recipe) == "pack: its model card says apache-2.0; its package says MIT OR Apache-2.0"
    assert licence_of(recipe | {"version": "2.0"}) is None  # not on this machine
    assert licence_of({"package": "pack"}) is None


@pytest.mark.parametrize("name", ["LICENSE", "license.txt", "LICENCE.md", "COPYING"])
def test_a_file_beside_the_weights(tmp_path, name):
    (tmp_path / name).write_text("\n\n#  Apache License\nVersion 2.0\n")
    (tmp_path / "licensed_words.json").write_text("{}")
    assert licence_of({"name": str(tmp_path)}) == f"{tmp_path.name}: its {name} begins “Apache License”"
    (tmp_path / name).write_text("")
    assert licence_of({"name": str(tmp_path)}) == f"{tmp_path.name}: it holds a {name}"


def test_a_single_file_a_hub_name_and_nothing(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").touch()
    (tmp_path / "README.md").write_text(CARD.replace("apache-2.0", '"mit"'))
    assert licence_of({"name": str(tmp_path / "model.gguf")}).endswith("its model card says mit")
    monkeypatch.setattr(licences, "hub_cache", lambda name, revision: tmp_path if revision == "main" else None)
    assert licence_of({"name": "owner/model", "revision": "main"}) == "owner/model: its model card says mit"
    assert licence_of({"name": "owner/model"}) is None
    assert licence_of({}) is licence_of({"name": None, "architecture": "bert"}) is None
    (tmp_path / "README.md").write_text("license: mit\n")  # no front matter
    assert licence_of({"name": str(tmp_path)}) is None
