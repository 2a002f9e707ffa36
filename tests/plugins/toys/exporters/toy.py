"""The number of tiles of a slide, in a text file."""

from cytofm_cli.exporters.product import Product
from cytofm_cli.registry import ExporterPlugin, samples
from cytofm_cli.work.files import replacing


def products(request):
    path = request.folder / f"{request.store.slide_id}.txt"
    tile = request.store.tile

    def write():
        with replacing(path) as partial:
            partial.write_text(f"{tile.n_tiles} tiles\n")

    return [Product([path], {}, [tile], write)]


PLUGIN = ExporterPlugin(make=products, summary="a count of tiles", sample=samples())
