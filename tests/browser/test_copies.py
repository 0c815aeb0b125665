"""Two copies of the pack in custom_nodes: the page works with one of them, and says so once."""

from latent_clip.tests.browser_page import ComfyPage
from latent_clip.tests.host_server import TestServer
from latent_clip.tools.comfy_server import PACK_FOLDER, PACK_ROOT

SECOND = "latent-clip-copy"


def test_page_names_both_folders_once_and_works(chromium, comfy_tree, tmp_path):
    server = TestServer(comfy_tree, tmp_path)
    (server.base / "custom_nodes" / SECOND).symlink_to(PACK_ROOT, target_is_directory=True)
    with server:
        page = ComfyPage(chromium, server, "classic")
        try:
            notice = page.page.locator(".p-toast-message", has_text="installed twice")
            notice.first.wait_for(timeout=30_000)
            assert notice.count() == 1
            text = notice.inner_text()
            assert PACK_FOLDER in text and SECOND in text
            page.load(PACK_ROOT / "workflows" / "01 Try it now.json")
            page.settle()
            kinds = "node => node.widgets?.filter(w => w.name === 'latent_clip_scores').length ?? 0"
            assert page.js(f"() => app.graph.nodes.map({kinds}).reduce((a, b) => Math.max(a, b))") == 1
            assert page.run().ok
            page.page.locator(".latent-clip-panel.latent-clip-has-rows").first.wait_for(
                state="attached", timeout=10_000
            )
            assert not page.errors, page.errors
        finally:
            page.close()
