"""A pack that pins what others need newer, see its requirements.txt; its one node shares a socket name with ours."""


class PinsNode:
    RETURN_TYPES = ("LATENT_CLIP",)
    FUNCTION = "run"
    CATEGORY = "neighbours"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        return (None,)


NODE_CLASS_MAPPINGS = {"NeighbourPins": PinsNode}
