"""Finds dead links in the built site: `python docs/links.py SITE [--external]`.

`mkdocs build --strict` looks at links as pages write them; here every `href` and `src` of the finished HTML is looked
at, with those that the reference and the theme made: its file has to be there, and its anchor in it. `--external` asks
other hosts too, once an address; one that refuses programs (403, 429) is named, and is no error. LinkChecker 10.6 would
take nine minutes for it where this takes a second, and follows no anchor into a page that is a local folder's.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

REFUSED = {403, 429}
TRIES, SECONDS = 3, 20


class Page(HTMLParser):
    """What a page links, and what can be linked in it.

    Args:
        text: the HTML.

    Attributes:
        links: values of `href` and `src`.
        anchors: names that a link may end with.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = {"", "__comments"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes links and anchors of an element; of a `link` only what is loaded, as the site's own address is none."""
        found = {name: value for name, value in attrs if value is not None}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if found.get("rel") not in ("canonical", "preconnect"):
            self.links |= {found[name] for name in ("href", "src") if name in found}


def dead_inside(site: Path) -> list[str]:
    """Every link within the site whose file or anchor is not there.

    Raises:
        FileNotFoundError: there is no page in that folder.
    """
    site = site.resolve()
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        raise FileNotFoundError(f"got '{site}', which has no page; the folder that `mkdocs build` made is required.")
    dead = []
    for path, page in pages.items():
        for link in sorted(page.links):
            address, anchor = urldefrag(link)
            if urlsplit(link).scheme or link.startswith("//"):
                continue
            root = site if address.startswith("/") else path.parent
            target = (root / unquote(urlsplit(address).path).lstrip("/")).resolve() if address else path
            target = target / "index.html" if target.is_dir() else target
            there = pages.get(target)
            if not target.is_file() or (there is not None and unquote(anchor) not in there.anchors):
                dead.append(f"{path.relative_to(site)} links '{link}', which is not there")
    return dead


def outside(site: Path) -> list[str]:
    """Addresses on other hosts that the pages link."""
    pages = (Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html"))
    links = (urldefrag(link)[0] for page in pages for link in page.links)
    return sorted({link for link in links if urlsplit(link).scheme in ("http", "https")})


def dead_outside(addresses: Iterable[str]) -> list[str]:
    """Those that do not answer, or with an error; prints those that refuse programs."""
    dead = []
    for address in addresses:
        why = asked(address)
        if why in {f"status {code}" for code in REFUSED}:
            print(f"{address} refuses programs ({why}): look at it by hand")
        elif why is not None:
            dead.append(f"{address}: {why}")
    return dead


def asked(address: str) -> str | None:
    """Why an address cannot be read; None: it can be."""
    why = None
    for _ in range(TRIES):
        try:
            request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0 (link check)"})
            with urllib.request.urlopen(request, timeout=SECONDS):
                return None
        except urllib.error.HTTPError as error:
            return f"status {error.code}"
        except OSError as error:
            why = str(error)
    return why


def main(site: Path, *, external: bool) -> int:
    """Prints what is dead; the exit status."""
    addresses = outside(site) if external else []
    dead = dead_inside(site) + dead_outside(addresses)
    print("\n".join(dead) or f"no dead link in {site}" + (f", nor in {len(addresses)} out of it" if external else ""))
    return bool(dead)


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if argument != "--external"]
    if len(given) != 1:
        sys.exit("usage: python docs/links.py SITE [--external]")
    sys.exit(main(Path(given[0]), external="--external" in sys.argv))
