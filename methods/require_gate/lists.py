"""The node classes that may stand before and behind a gate, as frozen data; everything else is refused.

Names are those of the host's registry; `~` stands for a space in one. A test checks every name against the real host.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Classes that are harmless for one reason."""

    reason: str
    names: str

    @property
    def classes(self) -> frozenset[str]:
        return frozenset(name.replace("~", " ") for name in self.names.split())


def _classes(families: tuple[Family, ...]) -> frozenset[str]:
    return frozenset().union(*(family.classes for family in families))


GATE, PIXEL_LOADER = "LatentCLIPSafetyGate", "LatentCLIPPixelLoader"
LOADERS = {"LatentCLIPLoader": ("file",), PIXEL_LOADER: ("file", "quick_gelu"), "LatentCLIPShapesWorld": ()}
"""Loader of a Latent-CLIP → its inputs that decide what the Latent-CLIP sees."""

VAE_FILES = {
    "VAELoader": "vae_name",
    "CheckpointLoaderSimple": "ckpt_name",
    "ImageOnlyCheckpointLoader": "ckpt_name",
    "unCLIPCheckpointLoader": "ckpt_name",
    "LatentCLIPShapesWorld": "",
}
"""Loader of a VAE → the input that names its file; "" where it loads always the same."""

# Before a gate: they show and store nothing. What comes out of them is unchecked, whatever came in.

FILES = Family(
    "loaders of models that can only be sampled or encoded with; what they load is never shown",
    """
    LoraLoader CLIPLoader UNETLoader DualCLIPLoader ControlNetLoader DiffControlNetLoader StyleModelLoader CLIPVisionLoader
    GLIGENLoader CheckpointLoader DiffusersLoader LoraLoaderModelOnly HypernetworkLoader PhotoMakerLoader TripleCLIPLoader
    LatentUpscaleModelLoader LTXAVTextEncoderLoader QuadrupleCLIPLoader ModelPatchLoader AudioEncoderLoader LoraLoaderBypass
    LoraLoaderBypassModelOnly LoadDA3Model
    """,
)

PATCHES = Family(
    "change how a model samples, without a picture of their own",
    """
    TomePatchModel FreeU FreeU_V2 HyperTile ModelSamplingDiscrete ModelSamplingContinuousEDM ModelSamplingContinuousV
    ModelSamplingStableCascade ModelSamplingSD3 ModelSamplingAuraFlow ModelSamplingFlux ModelNoiseScale RescaleCFG ModelComputeDtype
    PatchModelAddDownscale PerturbedAttentionGuidance UNetSelfAttentionMultiply UNetCrossAttentionMultiply CLIPAttentionMultiply
    UNetTemporalAttentionMultiply SkipLayerGuidanceSD3 Epsilon~Scaling TemporalScoreRescaling SkipLayerGuidanceDiT
    SkipLayerGuidanceDiTSimple ModelSamplingLTXV RenormCFG CFGZeroStar CFGNorm TCFG ContextWindowsManual WanContextWindowsManual
    LTXVContextWindows ChromaRadianceOptions QwenImageDiffsynthControlnet ZImageFunControlnet WanUni3CControlnetApply
    USOStyleReference SUPIRApply AnimaLLLiteApply EasyCache LazyCache ScaleROPE NAGuidance HiDreamO1PatchSeamSmoothing
    SelfAttentionGuidance PerpNeg DifferentialDiffusion FluxKVCache TorchCompileModel Mahiro FreSca SelectModelDevice SelectCLIPDevice
    MultiGPU_WorkUnits LatentCLIPGuideModel LatentCLIPSafetyGuidance
    """,
)

MERGES = Family(
    "a model made of models, in memory",
    """
    ModelMergeSimple ModelMergeBlocks ModelMergeSubtract ModelMergeAdd CLIPMergeSimple CLIPMergeSubtract CLIPMergeAdd ModelMergeSD1
    ModelMergeSD2 ModelMergeSDXL ModelMergeSD3_2B ModelMergeAuraflow ModelMergeFlux1 ModelMergeSD35_Large ModelMergeMochiPreview
    ModelMergeLTXV ModelMergeCosmos7B ModelMergeCosmos14B ModelMergeWAN2_1 ModelMergeCosmosPredict2_2B ModelMergeCosmosPredict2_14B
    ModelMergeQwenImage ModelMergeKrea2
    """,
)

HOOKS = Family(
    "schedules of LoRA and conditioning",
    """
    CreateHookLora CreateHookLoraModelOnly CreateHookModelAsLora CreateHookModelAsLoraModelOnly SetHookKeyframes CreateHookKeyframe
    CreateHookKeyframesInterpolated CreateHookKeyframesFromFloats CombineHooks2 CombineHooks4 CombineHooks8 ConditioningSetProperties
    ConditioningSetPropertiesAndCombine PairConditioningSetProperties PairConditioningSetPropertiesAndCombine
    ConditioningSetDefaultCombine PairConditioningSetDefaultCombine PairConditioningCombine SetClipHooks ConditioningTimestepsRange
    """,
)

CONDITIONING = Family(
    "texts and pictures encoded for a sampler; some also give it the latent to begin with",
    """
    CLIPTextEncode CLIPSetLastLayer ConditioningAverage ConditioningCombine ConditioningConcat ConditioningMultiply
    ConditioningSetArea ConditioningSetAreaPercentage ConditioningSetAreaStrength ConditioningSetMask CLIPVisionEncode StyleModelApply
    unCLIPConditioning ControlNetApply ControlNetApplyAdvanced GLIGENTextBoxApply InpaintModelConditioning ConditioningZeroOut
    ConditioningSetTimestepRange CLIPTextEncodeSDXLRefiner CLIPTextEncodeSDXL SVD_img2vid_Conditioning
    ConditioningSetAreaPercentageVideo StableZero123_Conditioning StableZero123_Conditioning_Batched SV3D_Conditioning
    SD_4XUpscale_Conditioning PhotoMakerEncode CLIPTextEncodePixArtAlpha CLIPTextEncodeControlnet T5TokenizerOptions
    StableCascade_StageB_Conditioning InstructPixToPixConditioning ConditioningStableAudio CLIPTextEncodeSD3 ControlNetApplySD3
    SetUnionControlNetType ControlNetInpaintingAliMamaApply CLIPTextEncodeHunyuanDiT TextEncodeHunyuanVideo_ImageToVideo
    HunyuanVideo15ImageToVideo HunyuanVideo15SuperResolution HunyuanImageToVideo HunyuanRefinerLatent CLIPTextEncodeFlux FluxGuidance
    FluxDisableGuidance FluxKontextMultiReferenceLatentMethod LTXVImgToVideo LTXVImgToVideoInplace LTXVConditioning
    GetICLoRAParameters LTXVAddGuide LTXVCropGuides LTXVReferenceAudio CosmosImageToVideoLatent CosmosPredict2ImageToVideoLatent
    CLIPTextEncodeLumina2 WanTrackToVideo WanImageToVideo WanFunControlToVideo Wan22FunControlToVideo WanFunInpaintToVideo
    WanFirstLastFrameToVideo WanVaceToVideo WanCameraImageToVideo WanPhantomSubjectToVideo WanSoundImageToVideo
    WanSoundImageToVideoExtend WanHuMoImageToVideo WanAnimateToVideo Wan22ImageToVideoLatent WanInfiniteTalkToVideo
    BerniniConditioning LotusConditioning CLIPTextEncodeHiDream WanCameraEmbedding ReferenceLatent SeedVR2Conditioning
    TextEncodeQwenImageEdit TextEncodeQwenImageEditPlus TextEncodeMageFlowEdit TextEncodeJoyImageEdit TextEncodeBooguEdit
    PiDConditioning AudioEncoderEncode Kandinsky5ImageToVideo CLIPTextEncodeKandinsky5 WanMoveTrackToVideo WanMoveTracksFromCoords
    WanMoveConcatTrack GenerateTracks ARVideoI2V TextEncodeZImageOmni WanSCAILToVideo WanDancerVideo HiDreamO1ReferenceImages
    """,
)

SAMPLING = Family(
    "samplers, schedulers, noise and guiders",
    """
    KSampler KSamplerAdvanced SamplerCustom CFGOverride BasicScheduler KarrasScheduler ExponentialScheduler PolyexponentialScheduler
    LaplaceScheduler VPScheduler BetaSamplingScheduler SDTurboScheduler KSamplerSelect SamplerEulerAncestral
    SamplerEulerAncestralCFGPP SamplerLMS SamplerDPMPP_3M_SDE SamplerDPMPP_2M_SDE SamplerDPMPP_SDE SamplerDPMPP_2S_Ancestral
    SamplerDPMAdaptative SamplerER_SDE SamplerSASolver SamplerSEEDS2 SplitSigmas SplitSigmasDenoise FlipSigmas SetFirstSigma
    ExtendIntermediateSigmas SamplingPercentToSigma CFGGuider DualCFGGuider DualModelGuider BasicGuider RandomNoise DisableNoise
    SamplerCustomAdvanced ManualSigmas VideoLinearCFGGuidance VideoTriangleCFGGuidance Ideogram4Scheduler AlignYourStepsScheduler
    SamplerLCMUpscale SamplerLCM GITSScheduler Flux2Scheduler LTXVScheduler OptimalStepsScheduler APG SamplerARVideo PerpNegGuider
    SamplerEulerCFGpp
    """,
)

LATENTS = Family(
    "latents to begin with, encoders, upscalers, and a saved latent, which counts as a sampler's; none that multiplies, adds or nests",
    """
    VAEEncode VAEEncodeForInpaint VAEEncodeTiled EmptyLatentImage LatentUpscale LatentUpscaleBy RepeatLatentBatch SetLatentNoiseMask
    LoadLatent LatentBatch LatentBatchSeedBehavior LatentCompositeMasked StableCascade_EmptyLatentImage StableCascade_StageC_VAEEncode
    EmptySD3LatentImage EmptyHunyuanLatentVideo EmptyHunyuanVideo15Latent HunyuanVideo15LatentUpscaleWithModel EmptyHunyuanImageLatent
    EmptyFlux2LatentImage EmptyMochiLatentVideo LTXVLatentUpsampler EmptyLTXVLatentVideo EmptyCosmosLatentVideo TrimVideoLatent
    EmptyQwenImageLayeredLatentImage EmptyChromaRadianceLatentImage EmptyARVideoLatent EmptyHiDreamO1LatentImage
    """,
)

PREPARATION = Family(
    "pictures and masks prepared for an encoder, an inpainting or a control net",
    """
    ImagePadForOutpaint Canny ImageCrop ImageBlur ImageSharpen LTXVPreprocess SeedVR2Preprocess DA3Inference DA3Render
    FluxKontextImageScale MaskToImage ImageToMask ImageColorToMask SolidMask InvertMask CropMask MaskComposite FeatherMask GrowMask
    ThresholdMask BatchMasksNode SplitImageWithAlpha CenterCropImages
    """,
)

BEFORE_FAMILIES = (FILES, PATCHES, MERGES, HOOKS, CONDITIONING, SAMPLING, LATENTS, PREPARATION)
BEFORE = _classes(BEFORE_FAMILIES)

# Before and behind a gate: what comes out is no more than what came in. Unchecked stays unchecked, checked stays checked.

VALUES = Family(
    "texts, numbers and switches: they hand on or combine what comes in, and nothing of a picture fits through",
    """
    TextToLowercase TextToUppercase TruncateText AddTextPrefix AddTextSuffix ReplaceText StripWhitespace MergeTextLists
    PrimitiveString PrimitiveStringMultiline PrimitiveInt PrimitiveFloat PrimitiveBoolean StringFormat StringConcatenate
    StringSubstring StringLength CaseConverter StringTrim StringReplace StringContains StringCompare RegexMatch RegexExtract
    RegexReplace JsonExtractString ComfySwitchNode CustomCombo ComfyNotNode ComfyAndNode ComfyOrNode ResolutionSelector ColorToRGBInt
    ComfyMathExpression ComfyNumberConvert SeedNode GetImageSize
    """,
)

UPLOADS = Family(
    "the client's own pictures, sounds and clips, and flat colours",
    """
    LoadImage LoadImageMask LoadImageOutput LoadAudio LoadVideo EmptyImage
    """,
)

SOURCES = Family(
    "loaders whose output may be used behind a gate; that of a VAE is checked by its file",
    """
    VAELoader CheckpointLoaderSimple ImageOnlyCheckpointLoader unCLIPCheckpointLoader UpscaleModelLoader FrameInterpolationModelLoader
    LatentCLIPLoader LatentCLIPPixelLoader LatentCLIPShapesWorld
    """,
)

REWARDS = Family(
    "a number for each latent; with nothing unchecked in it, it may rank what a gate has let through",
    """
    LatentCLIPTextReward LatentCLIPAvoidReward LatentCLIPLatentReward LatentCLIPPixelReward LatentCLIPCombineRewards
    """,
)

ITEMS = Family(
    "items of a batch of latents, as they are",
    """
    LatentFromBatch RebatchLatents
    """,
)

RESIZERS = Family(
    "one picture in another size, with the whole of it to be seen, also by a model",
    """
    ImageScale ImageScaleBy ImageScaleToTotalPixels ImageScaleToMaxDimension ImageUpscaleWithModel ResizeImageMaskNode
    ResizeAndPadImage ResizeImagesByShorterEdge ResizeImagesByLongerEdge
    """,
)

FRAMES = Family(
    "batches and clips of whole pictures, put together or taken apart",
    """
    ImageBatch BatchImagesNode RebatchImages RepeatImageBatch ImageFromBatch FrameInterpolate CreateVideo GetVideoComponents
    Video~Slice VideoTemporalCrop
    """,
)

DECODERS_FAMILY = Family(
    "decode a latent as it is; behind a gate only with the VAE whose latents were checked",
    """
    VAEDecode VAEDecodeTiled
    """,
)

PASTES = Family(
    "an opaque paste; behind a gate without a mask, and of one checked picture on the client's own",
    """
    ImageCompositeMasked
    """,
)

# They show or store. All that comes in must be checked.

SAVERS = Family(
    "savers and previews of pictures and clips",
    """
    SaveImage SaveImageAdvanced SaveAnimatedWEBP SaveAnimatedPNG SaveWEBM SaveVideo PreviewImage ImageCompare
    """,
)

SMALL_PICTURES = Family(
    "our nodes that hand latents on as they are, and whose reports hold small pictures of them",
    """
    LatentCLIPScore LatentCLIPSelect LatentCLIPClassify
    """,
)

# They show a text: a verdict or the client's own is harmless, one made of something unchecked is not.

TEXTS = Family(
    "show or save a text",
    """
    PreviewAny SaveText
    """,
)

NEUTRAL_FAMILIES = (
    VALUES, UPLOADS, SOURCES, REWARDS, ITEMS, RESIZERS, FRAMES, DECODERS_FAMILY, PASTES, SAVERS, SMALL_PICTURES, TEXTS
)  # fmt: skip
NEUTRAL = _classes(NEUTRAL_FAMILIES)
DECODERS, PASTE, SHOWS_TEXT = DECODERS_FAMILY.classes, PASTES.classes, TEXTS.classes
SHOWS_IMAGES = _classes((SAVERS, SMALL_PICTURES))
