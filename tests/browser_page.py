"""What a user can do with the page, as methods."""

import json
import re
from pathlib import Path

from .host_server import TestServer

PICTURES = Path(__file__).resolve().parent.parent / "output" / "browser"

# What the page itself writes to the console on any host: user files that do not exist yet, services of the wider
# network (blocked here), and its own start-up order. Anything else is taken for ours.
NOISE = re.compile(
    r"/userdata|/user\.css|/api/settings/|Content.?Security.?Policy|ERR_FAILED|ERR_NAME_NOT_RESOLVED|ERR_INTERNET"
    r"|graph accessed before initialization"
)


class ComfyPage:
    """The page on a running server.

    Attributes:
        page: the playwright page, for what has no method here.
        errors: console errors and uncaught exceptions since the last reset, without the page's own noise.
        renderer: "classic" or "nodes2".
    """

    def __init__(self, browser, server: TestServer, renderer: str):
        self.server, self.renderer = server, renderer
        self.errors: list[str] = []
        self.page = browser.new_page(viewport={"width": 1500, "height": 950})
        self.page.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self._note(f"uncaught: {error}"))
        self.page.on("response", self._response)
        self.page.goto(server.url)
        self._ready()
        self.js("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", renderer == "nodes2")

    def _ready(self) -> None:
        """Wait for the page, and note what it hears."""
        self.page.wait_for_function("window.app?.extensionManager && window.app?.graph", timeout=60_000)
        self.js("""() => {
            window.seen = [];
            for (const kind of ['executed', 'execution_success', 'execution_error', 'execution_interrupted'])
                app.api.addEventListener(kind, (event) => window.seen.push([kind, event.detail]));
        }""")

    def reload(self) -> None:
        """Load the page again, as F5 does."""
        self.page.reload()
        self._ready()

    def _console(self, message) -> None:
        if message.type == "error":
            self._note(f"{message.text} ({message.location.get('url', '')})")

    def _response(self, response) -> None:
        """What the pack's own routes refuse, and why: the console says no more than a number."""
        if response.status >= 400 and "/latent_clip/" in response.url:
            print(f"{response.status} {response.url} {response.request.post_data}: {response.text()}")

    def _note(self, text: str) -> None:
        if not NOISE.search(text):
            self.errors.append(text)

    def close(self) -> None:
        """Close the page."""
        self.page.close()

    def reset(self) -> None:
        """Empty the graph as a new workflow does, and forget errors and events."""
        self.js("() => { app.nodeOutputs = {}; app.graph.clear(); window.seen = []; }")
        self.errors.clear()

    def js(self, code: str, argument=None):
        """Evaluate JavaScript in the page."""
        return self.page.evaluate(code, argument)

    def load(self, workflow: dict | Path) -> None:
        """Open a UI-format workflow, as File → Open does."""
        if isinstance(workflow, Path):
            workflow = json.loads(workflow.read_text())
        self.js("workflow => app.loadGraphData(workflow)", workflow)
        self.settle()

    def load_prompt(self, prompt: dict) -> None:
        """Open an API-format prompt, as dropping such a file on the page does."""
        self.js("prompt => app.loadApiJson(prompt, 'test')", prompt)
        self.settle()

    def settle(self) -> None:
        """Let the page draw."""
        self.js("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def graph(self) -> dict:
        """The workflow as the page would save it."""
        return self.js("() => app.graph.serialize()")

    def prompt(self) -> dict:
        """The API prompt that the page would queue."""
        return self.js("async () => (await app.graphToPrompt()).output")

    def node_types(self, pattern: str) -> set[str]:
        """Registered node ids that match a regular expression."""
        return set(self.js("p => Object.keys(LiteGraph.registered_node_types).filter(n => RegExp(p).test(n))", pattern))

    def start(self) -> str:
        """Press Run and return the prompt's id."""
        with self.page.expect_response(lambda response: response.url.endswith("/prompt")) as posted:
            self.page.get_by_test_id("queue-button").click()
        answer = posted.value.json()
        if not posted.value.ok:
            raise AssertionError(f"the server refused the page's prompt: {answer}")
        return answer["prompt_id"]

    def run(self, timeout: float = 120):
        """Press Run, wait until the page has heard that it is done, and return the server's Result."""
        prompt_id = self.start()
        result = self.server.wait(prompt_id, timeout)
        self.page.wait_for_function(
            "id => seen.some(([kind, e]) => kind.startsWith('execution_') && e.prompt_id === id)",
            arg=prompt_id,
        )
        self.settle()
        return result

    def screenshot(self, name: str) -> Path:
        """Save what is on the screen to output/browser/NAME-RENDERER.png."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        path = PICTURES / f"{name}-{self.renderer}.png"
        self.page.screenshot(path=path)
        return path
