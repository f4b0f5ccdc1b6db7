"""MkDocs hook: serves the plots of benchmarks/results/, which pages name as ../benchmarks/results/NAME.png."""

import pathlib

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_RESULTS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the plots to the site under results/."""
    for plot in sorted(_RESULTS.glob("*.png")):
        files.append(File.generated(config, f"results/{plot.name}", abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points the pages of docs/ itself to them; on GitHub the original paths work."""
    return markdown.replace("](../benchmarks/results/", "](results/")
