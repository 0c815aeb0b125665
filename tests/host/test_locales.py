"""Every text of every node in every language, and a help page for each node."""

import json
import re

import pytest

from latent_clip.tools.comfy_server import PACK_ROOT
from latent_clip.tools.locales import PREFIX, english, is_plain, texts_of_nodes

LANGUAGES = sorted(path.name for path in (PACK_ROOT / "locales").iterdir())
HAN = re.compile(r"[\u4e00-\u9fff]")


def read(language: str, name: str) -> dict:
    return json.loads((PACK_ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))


def flatten(tree: dict, path: str = "") -> dict[str, str]:
    """{"a": {"b": "text"}} → {"a.b": "text"}."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value}
    return flat


@pytest.fixture(scope="module")
def object_info(comfy) -> dict:
    return {name: info for name, info in comfy.object_info().items() if name.startswith(PREFIX)}


def test_english_is_what_the_schemas_say(object_info):
    assert read("en", "nodeDefs") == english(object_info), "run tools/locales.py"


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_every_text_of_the_schemas_is_translated(object_info, language):
    expected, translated = flatten(texts_of_nodes(object_info)), flatten(read(language, "nodeDefs"))
    assert sorted(expected.keys() - translated.keys()) == [], "not translated"
    assert sorted(translated.keys() - expected.keys()) == [], "translates what is no longer there"


@pytest.mark.parametrize("language", LANGUAGES)
def test_page_can_show_every_text(language):
    for key, text in flatten(read(language, "nodeDefs")).items():
        assert text.strip(), key
        assert is_plain(text), f"{key} has characters that the page takes for syntax"


def test_chinese_is_chinese():
    for key, text in flatten(read("zh", "nodeDefs")).items():
        assert key.endswith(".name") or HAN.search(text), f"{key}: {text}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_widgets_have_their_words_in_every_language(language):
    expected, translated = flatten(read("en", "main")), flatten(read(language, "main"))
    assert translated.keys() == expected.keys()
    for key, text in expected.items():
        assert set(re.findall(r"\{\w+\}", translated[key])) == set(re.findall(r"\{\w+\}", text)), key


def test_widgets_ask_for_no_other_words():
    words = read("en", "main")["latentClip"]
    code = "\n".join(path.read_text(encoding="utf-8") for path in (PACK_ROOT / "js").rglob("*.js"))
    asked = set(re.findall(r"""\btext\(\s*["'](\w+)["']""", code))
    assert asked
    assert asked <= words.keys()


def test_host_serves_them(comfy):
    served = comfy.get("/i18n")
    for language in LANGUAGES:
        assert served[language]["nodeDefs"]["LatentCLIPScore"] == read(language, "nodeDefs")["LatentCLIPScore"]
        assert served[language]["latentClip"] == read(language, "main")["latentClip"]


def test_every_node_has_a_help_page_that_names_its_sockets(object_info):
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (PACK_ROOT / "js" / "docs").glob("*.md")}
    assert sorted(pages) == sorted(object_info)
    for name, texts in texts_of_nodes(object_info).items():
        lines = pages[name].splitlines()
        assert len(lines) <= 70, f"{name}: {len(lines)} lines"
        sockets = [*texts.get("inputs", {}), *(output["name"] for output in texts["outputs"].values())]
        missing = [socket for socket in sockets if f"`{socket}`" not in pages[name]]
        assert not missing, f"{name}: {missing}"
