"""`pere.js` as it is served, and as a package."""

import json
from pathlib import Path

import pytest

import pere

BROWSER = Path(pere.__file__).parent / "browser"


# Files


@pytest.mark.parametrize("target, kind", [("/pere.js", "text/javascript; charset=utf-8"), ("/pere.d.ts", "text/plain; charset=utf-8")])
async def test_a_file_is_what_it_says_and_is_asked_for_again_only_if_it_changed(ask, target, kind):
    answer = await ask("GET", target)
    assert (answer.status, answer.headers["content-type"], answer.headers["cache-control"], answer.headers["x-content-type-options"]) == (200, kind, "no-cache", "nosniff")
    again = await ask("GET", target, If_None_Match=answer.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    assert (await ask("HEAD", target)).headers["content-length"] == str(len(answer.body))


@pytest.mark.parametrize("target", ["/console/", "/console/nothing.js", "/console/..%2fserver.py", "/console/index.html%00", "/console/%2e%2e%2fbrowser%2fpere.js", "/pere.py", "/browser/pere.js",
                                    "/console/package.json", "/package.json", "/pereXjs"])
async def test_nothing_but_these_is_served(ask, target):
    assert (await ask("GET", target)).error == (404, "not_found")


async def test_a_page_of_a_named_origin_may_import_it(start, ask):
    await start(cors_origins="https://shop.example")
    answer = await ask("GET", "/pere.js", Origin="https://shop.example")
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"


# The package


async def test_the_module_is_small(ask):
    assert len((await ask("GET", "/pere.js")).body) < 6 * 1024


def test_the_package_is_what_npm_wants():
    package = json.loads((BROWSER / "package.json").read_text())
    assert (package["type"], package["license"], package["types"]) == ("module", "MIT", package["exports"]["."]["types"])
    assert {package["types"], package["exports"]["."]["default"]} == {f"./{name}" for name in package["files"]}
    assert all((BROWSER / name).is_file() for name in package["files"])
    assert package["version"].split("-")[0] == pere.__version__.partition(".dev")[0]
