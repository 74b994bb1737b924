"""Data and numbers: what batches, processors and dtypes break."""

from smokehouse_loader.failures.model import Failure, Sign

# Of models with vision; a class of one's own may well lack what a tokenizer has.
_PROCESSORS = " || ".join(
    f"{name}Processor'"
    for name in ("VL", "VLM", "Llava", "LlavaNext", "LlavaOnevision", "Gemma3", "Idefics3", "Mllama", "Glm4v")
)
_VISION_INDEX = "image_grid_thw[ || video_grid_thw[ || grid_thw[index] || <|placeholder|> || get_rope_index || image_grid_thw"

FAILURES = (
    Failure(
        name="more-image-marks-than-images",
        cause=(
            "A text has another number of image marks (<image>, <|image_pad|>) than its sample has images, mostly more: the "
            "processor or get_rope_index looks for an image that was not given."
        ),
        cure=(
            "give each mark an image, and remove marks from texts without one; print the sample's text and its "
            "number of images, "
            "truncated texts among them"
        ),
        source="transformers/models/qwen2_5_vl/processing_qwen2_5_vl.py",
        signs=(
            Sign("IndexError: index {n} is out of bounds for dimension 0 with size {n}", needs=(_VISION_INDEX,)),
            Sign("IndexError: list index out of range", needs=(_VISION_INDEX + " || pixel_values || process_vision_info",)),
            Sign("StopIteration", needs=("next(image_sizes || image_grid || processing_",)),
            Sign("The number of images does not match the number of {} tokens in"),
            Sign("The number of videos does not match the number of {} tokens in"),
        ),
        excludes=("ignore-mismatched-sizes",),
    ),
    Failure(
        name="image-mark-missing",
        cause="The text has no image token at all, and pixels were given: no image was named where the template puts its mark.",
        cure=(
            'make text and pixels of one message whose content lists the image ({"type": "image"} before the text), with the '
            "model's own chat template, or write its mark (<image>, <|image_pad|>) into the text"
        ),
        source="transformers/models/llava/modeling_llava.py and others, get_placeholder_mask",
        signs=(
            Sign("Image features and image tokens do not match: tokens: 0, features"),
            Sign("Image features and image tokens do not match, tokens: 0, features"),
        ),
        excludes=("image-tokens-truncated",),
        question="Does the text before the tokenizer have an image mark, and does truncation cut it off?",
    ),
    Failure(
        name="image-tokens-truncated",
        cause=(
            "The text has another number of image tokens than the vision tower makes features: it was truncated in an image, "
            "pixels and tokens come from different processors (min_pixels, max_pixels), or a batch was split in which a sample "
            "has several images."
        ),
        cure=(
            "raise the maximum length (or set it to None; in trl max_prompt_length=None, max_length=None) and "
            "lower max_pixels; make text and pixels in one "
            "call of the same processor"
        ),
        source="transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py",
        signs=(
            Sign("Image features and image tokens do not match"),
            Sign("Video features and video tokens do not match"),
            Sign("Videos features and video tokens do not match"),
            Sign("The number of image tokens is {n} while the number of image given to the model is"),
            Sign("The input provided to the model are wrong. The number of image tokens is"),
            Sign(
                "shape mismatch: value tensor of shape {shape} cannot be broadcast to indexing result of shape {shape}",
                needs=(
                    "image_embeds || image_mask || image_features || video_embeds || video_mask || get_rope_index || "
                    "llm_positions",
                ),
            ),
            # positions of three axes, which only Qwen's models have; where there are frames, they tell
            Sign(
                "shape mismatch: value tensor of shape [3, {n}] cannot be broadcast to indexing result of shape [3, {n}]",
                unless=('File "{w}", line || .py:{n} in || .py in ',),
            ),
            Sign("Mismatch in `image` token count between text and `input_ids`"),
            Sign("Mismatch in `video` token count between text and `input_ids`"),
        ),
        question="Is the text truncated (truncation=True, max_length)?",
    ),
    Failure(
        name="image-unreadable",
        cause="A file of the data set is not an image that Pillow can read: it is empty, cut off, or an error page.",
        cure=(
            "find it with PIL.Image.open(file).load() over the data set and remove it, or set "
            "ImageFile.LOAD_TRUNCATED_IMAGES = True"
        ),
        source="PIL/Image.py and ImageFile.py",
        signs=(
            Sign("cannot identify image file"),
            Sign("image file is truncated ({n} bytes not processed)"),
        ),
    ),
    Failure(
        name="image-too-large",
        cause="An image has more pixels than Pillow opens without being told to: a scan or a map of hundreds of megapixels.",
        cure=(
            "reduce the image in the data set, or set PIL.Image.MAX_IMAGE_PIXELS = None before reading if you trust it; the "
            "processor reduces it to max_pixels anyway"
        ),
        source="PIL/Image.py",
        signs=(Sign("Image size ({n} pixels) exceeds limit of {n} pixels, could be decompression bomb DOS attack"),),
    ),
    Failure(
        name="attention-mask-length",
        cause=(
            "attention_mask and input_ids of one call have different lengths: one of them was cut, padded or repeated and the "
            "other was not, or a step of generate got one token with the mask of all, and the positions of the first step "
            "(rope_deltas) were lost."
        ),
        cure=(
            "cut and pad both alike; in generate pass no position_ids or attention_mask of an earlier call, leave use_cache "
            "on, and install the transformers that the training code names"
        ),
        source="transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py, get_rope_index; tulerfeng/Video-R1 issue #19",
        signs=(
            Sign(
                "The shape of the mask {} at index {n} does not match the shape of the indexed tensor",
                needs=("get_rope_index || input_ids[attention_mask || _ids[attention_mask",),
            ),
        ),
    ),
    Failure(
        name="video-unreadable",
        cause="decord could not read a video to its end: the file is damaged, or its container promises frames that it lacks.",
        cure=(
            "set FORCE_QWENVL_VIDEO_READER=torchcodec (or torchvision), export DECORD_EOF_RETRY_MAX=20480, or encode the video "
            "again with ffmpeg; drop the sample if ffprobe fails, too"
        ),
        source="decord's video_reader.cc; modelscope/ms-swift issue #7060",
        # qwen-vl-utils goes on with another reader, and says so
        signs=(Sign("Unable to handle EOF because", unless=("error, use torchvision as default",)),),
    ),
    Failure(
        name="video-too-short",
        cause="A video has fewer frames than the least that are sampled: it is an image, cut off, or shorter than a second.",
        cure="drop videos of less than two frames, or pass nframes (even, at most the video's) or a higher fps with the sample",
        source="qwen_vl_utils/vision_process.py, smart_nframes",
        signs=(Sign("nframes should in interval ["),),
    ),
    Failure(
        name="video-metadata-missing",
        cause=(
            "Qwen3-VL writes the time of each frame into the text, and its processor was not told the frames' rate and number: "
            "frames came without video_metadata, or with part of it."
        ),
        cure=(
            "call process_vision_info(messages, return_video_kwargs=True, return_video_metadata=True) of qwen-vl-utils 0.0.14 "
            "and pass video_metadata on, with fps, total_num_frames and frames_indices; do_sample_frames=False for frames that "
            "were sampled already"
        ),
        source="transformers/video_utils.py, VideoMetadata; hiyouga/EasyR1 issue #599",
        signs=(
            Sign("VideoMetadata.__init__() missing {n} required positional argument"),
            Sign("frames per second but no video metadata was provided which is required when sampling"),
        ),
    ),
    Failure(
        name="image-too-thin",
        cause="An image is smaller than a patch, or its sides differ by more than the processor allows.",
        cure="drop or pad images with a side under 28 pixels or an aspect ratio above 200",
        source="transformers/models/qwen2_vl/image_processing_qwen2_vl.py and qwen_vl_utils",
        signs=(
            Sign("absolute aspect ratio must be smaller than"),
            Sign("height:{n} or width:{n} must be larger than factor:{n}"),
        ),
    ),
    Failure(
        name="image-channels",
        cause="An image has another mode than RGB (grey, palette, alpha), or its channel dimension cannot be told.",
        cure='convert every image with image.convert("RGB") before the processor, or pass input_data_format',
        source="transformers/image_utils.py",
        signs=(
            Sign("Unable to infer channel dimension format"),
            Sign("mean must have {n} elements if it is an iterable, got {n}"),
            Sign("The channel dimension is ambiguous. Got image shape"),
        ),
    ),
    Failure(
        name="padding-index",
        cause=(
            "The padding token's number is not within the embedding: the vocabulary was changed without resizing "
            "the embedding, or the "
            "number is None or -1."
        ),
        cure=(
            "set pad_token to a token of the vocabulary and call model.resize_token_embeddings(len(tokenizer)) "
            "after adding tokens"
        ),
        source="torch/nn/modules/sparse.py",
        signs=(
            Sign(
                "Padding_idx must be within num_embeddings",
                needs=('sparse.py", line {n}, in __init__ || sparse.py:{n} in __init__',),
            ),
        ),
    ),
    Failure(
        name="padding-token-missing",
        cause="The tokenizer or config has no padding token, which batches of more than one text require.",
        cure="set tokenizer.pad_token = tokenizer.eos_token, and model.config.pad_token_id to its number",
        source="transformers/tokenization_utils_base.py",
        signs=(
            Sign("Asking to pad but the tokenizer does not have a padding token"),
            Sign("Cannot handle batch sizes > 1 if no padding token is defined"),
        ),
    ),
    Failure(
        name="token-out-of-range",
        cause=(
            "A number is outside of the table it is looked up in, mostly a token beyond the embedding or a label "
            "beyond the classes; on a "
            "GPU only the assertion shows it, at some later call."
        ),
        cure=(
            "compare input_ids.max() with the embedding's rows and labels with num_labels (-100 is ignored); "
            "resize the embedding after adding "
            "tokens; run once with CUDA_LAUNCH_BLOCKING=1 or on a CPU to see the line"
        ),
        source="aten/src/ATen/native/cuda/Indexing.cu and Loss.cu",
        signs=(
            Sign("CUDA error: device-side assert triggered"),
            Sign("Assertion `srcIndex < srcSelectDimSize` failed"),
            Sign("Assertion `t >= 0 && t < n_classes` failed"),
            Sign("Assertion `ind >= 0 && ind < ind_dim_size"),
            Sign('Assertion `-sizes[i] <= index && index < sizes[i] && "index out of bounds"` failed'),
            Sign(
                "IndexError: index out of range in self",
                needs=("F.embedding || torch.embedding || functional.py || embed_tokens",),
            ),
            Sign("IndexError: Target {n} is out of bounds"),
        ),
        question="Which assertion failed, in the line above that ends in `failed`, and on which rank first?",
    ),
    Failure(
        name="not-finite-probabilities",
        cause=(
            "Sampling met probabilities that are not finite: the logits have inf or nan, often fp16 on a model trained in bf16."
        ),
        cure=(
            "generate in bf16 or fp32, check that all weights were loaded (assert_ready), and do not sample "
            "while training is unstable"
        ),
        source="aten/src/ATen/native/cuda/MultinomialKernel.cu",
        signs=(
            Sign("probability tensor contains either `inf`, `nan` or element < 0"),
            Sign("Assertion `probability tensor contains either `inf`, `nan` or element < 0` failed"),
        ),
        excludes=("token-out-of-range",),
    ),
    Failure(
        name="no-gradient",
        cause="The loss depends on no parameter that is trained: all are frozen, or the forward ran under no_grad.",
        cure=(
            "print which parameters require gradients; unfreeze some, or add an adapter; do not compute the loss "
            "under torch.no_grad"
        ),
        source="torch's autograd engine",
        signs=(
            Sign("element 0 of tensors does not require grad and does not have a grad_fn"),
            Sign("ValueError: optimizer got an empty parameter list"),
        ),
        question="Which parameters require gradients, and is gradient checkpointing on?",
    ),
    Failure(
        name="loss-not-finite",
        cause=(
            "The loss is not a number (the Trainer prints it as 0.0 beside a grad_norm of nan): a batch had no label left, "
            "fp16 overflowed, a row was padding only, or weights were not loaded."
        ),
        cure=(
            "stop the run; look for batches whose labels are all -100 (truncated answers), train in bf16 a model that was "
            "trained in bf16, check the load with assert_ready, then lower the learning rate and clip gradients"
        ),
        source="transformers/trainer.py, logging_nan_inf_filter",
        signs=(
            Sign("'loss': 0.0, 'grad_norm': nan"),
            Sign("'loss': '0', 'grad_norm': 'nan'"),
            Sign("'loss': nan, 'grad_norm': "),
            Sign("'loss': 'nan', 'grad_norm': "),
        ),
        may_follow=True,
        question="Is the first loss that is not finite in the first step, or after many good ones?",
    ),
    Failure(
        name="processor-as-tokenizer",
        cause="The code takes the processor of a vision-language model for its tokenizer, whose attributes it does not have.",
        cure=(
            "read processor.tokenizer.pad_token_id (and eos_token_id, pad) in own code, or install a release of the trainer "
            "that knows processors (trl 0.20 or later for GRPO with images)"
        ),
        source="transformers/processing_utils.py; trl/trainer/grpo_trainer.py",
        signs=tuple(
            Sign(f"Processor' object has no attribute '{name}'", needs=(_PROCESSORS,))
            for name in ("pad_token_id", "eos_token_id", "pad_token", "eos_token", "pad", "padding_side")
        ),
    ),
    Failure(
        name="fp16-gradients",
        cause="The weights themselves are fp16, and the gradient scaler of mixed precision only unscales fp32 gradients.",
        cure="load in fp32 (or bf16 with bf16=True) and let mixed precision cast; with an adapter, cast its parameters to fp32",
        source="torch/amp/grad_scaler.py",
        signs=(Sign("Attempting to unscale FP16 gradients"),),
    ),
    Failure(
        name="bf16-scaler",
        cause="The gradient scaler of fp16 met bf16 gradients: fp16=True with weights in bf16.",
        cure="set bf16=True and fp16=False, which needs no scaler",
        source="torch's AmpKernels.cu",
        signs=(Sign("_amp_foreach_non_finite_check_and_unscale_cuda\" not implemented for 'BFloat16'"),),
    ),
    Failure(
        name="mixed-dtypes",
        cause="Two tensors of one operation have different dtypes: part of the model, an adapter, or the pixels were not cast.",
        cure="load everything in one dtype (torch_dtype=torch.bfloat16), cast pixel_values to it, or run inside torch.autocast",
        source="aten's linear and convolution kernels",
        signs=(
            Sign("expected mat1 and mat2 to have the same dtype, but got: "),
            Sign("mat1 and mat2 must have the same dtype, but got"),
            Sign("expected scalar type {w} but found {w}", needs=("RuntimeError",)),
            Sign("Input type ({w}) and bias type ({w}) should be the same"),
            Sign(
                "Input type ({w}) and weight type ({w}) should be the same",
                unless=("cuda.{w}) and weight type (torch.{w}Tensor || (torch.cuda.{w}) and weight type (torch.FloatTensor",),
            ),
            Sign("Expected query, key, and value to have the same dtype, but got"),
            Sign("Index put requires the source and destination dtypes match"),
            Sign("masked_scatter_: expected self and source to have same dtypes but got"),
        ),
        question="Which module is it, and in which dtype are its weights?",
    ),
    Failure(
        name="mixed-devices",
        cause="Tensors of one operation are on different devices: a batch was not moved, or device_map split the model.",
        cure=(
            "move the batch to the model's device, one GPU per rank (LOCAL_RANK), and do not combine device_map "
            "with a distributed run"
        ),
        source="aten's device checks",
        signs=(
            Sign("Expected all tensors to be on the same device, but found at least two devices"),
            Sign("Expected all tensors to be on the same device, but got"),
        ),
    ),
    Failure(
        name="flash-attention-dtype",
        cause="FlashAttention computes in fp16 and bf16 only, and got fp32 queries.",
        cure="load with torch_dtype=torch.bfloat16 (in a config of DeepSpeed bf16.enabled), or attn_implementation='sdpa'",
        source="flash-attention's flash_api.cpp",
        signs=(Sign("FlashAttention only support fp16 and bf16 data type"),),
    ),
    Failure(
        name="flash-attention-padding",
        cause="FlashAttention met a batch that is padded on the right while generating.",
        cure="set processor.tokenizer.padding_side = 'left' before generation, or use attn_implementation='sdpa'",
        source="transformers' models of Qwen2 and Mistral",
        signs=(Sign("You are attempting to perform batched generation with padding_side='right"),),
    ),
    Failure(
        name="batch-not-tensor",
        cause="A collator could not make a tensor of the samples: they have different lengths, or fields that are no numbers.",
        cure=(
            "pad in the collator (padding=True), and remove columns that the model does not take "
            "(remove_unused_columns, or your own)"
        ),
        source="transformers/tokenization_utils_base.py, torch/utils/data/_utils/collate.py",
        signs=(
            Sign("Unable to create tensor, you should probably activate truncation and/or padding"),
            Sign("stack expects each tensor to be equal size, but got"),
            Sign("default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists"),
        ),
    ),
    Failure(
        name="labels-missing",
        cause="The batch has no labels, so the model computes no loss: the collator makes none, or they have another name.",
        cure="return labels from the collator (a copy of input_ids, with padding and image tokens set to -100)",
        source="transformers/trainer.py, compute_loss",
        signs=(Sign("The model did not return a loss from the inputs, only the following keys"),),
    ),
    Failure(
        name="group-size",
        cause="The global batch of GRPO cannot be divided into groups of num_generations completions.",
        cure=(
            "make per_device_train_batch_size x processes (x accumulation) a multiple of num_generations, or generate fewer; "
            "where it comes with the last batch, set dataloader_drop_last=True"
        ),
        source="trl/trainer/grpo_trainer.py and grpo_config.py; tulerfeng/Video-R1 issue #31",
        signs=(
            Sign("must be evenly divisible by the number of generations per prompt"),
            Sign("must be divisible by num_generations"),
            Sign("rewards.view({}self.num_generations)", needs=("is invalid for input of size",)),
            Sign("rewards.view(-1, num_generations)", needs=("is invalid for input of size",)),
        ),
    ),
    Failure(
        name="columns-removed",
        cause=(
            "The Trainer removed every column that forward does not name, the images or texts among them, before "
            "the collator ran."
        ),
        cure="set remove_unused_columns=False, and skip_prepare_dataset=True in SFTConfig for images",
        source="transformers/trainer.py, _remove_unused_columns",
        signs=(Sign("No columns in the dataset match the model's forward method signature"),),
    ),
    Failure(
        name="data-worker-killed",
        cause="A worker of a DataLoader was killed, mostly for memory: each has its own copy of what the data set decodes.",
        cure="lower num_workers and prefetch_factor, decode images lazily, and see dmesg for the out-of-memory killer",
        source="torch/utils/data/_utils/signal_handling.py",
        signs=(
            Sign("is killed by signal: Killed", needs=("DataLoader worker",)),
            Sign("is killed by signal: Segmentation fault", needs=("DataLoader worker",)),
            Sign("exited unexpectedly", needs=("DataLoader worker (pid(s)",)),
        ),
        may_follow=True,
    ),
    Failure(
        name="token-types-missing",
        cause=(
            "transformers 5 needs mm_token_type_ids to find images in a text; the collator or trainer passed on the grids and "
            "left it out."
        ),
        cure=(
            "pass on all that the processor returns (remove_unused_columns=False, no list of names in an own collator; padded "
            "with 0 like input_ids), with a trl or liger-kernel that knows this transformers"
        ),
        source="transformers/models/qwen3_vl/modeling_qwen3_vl.py; datawhalechina/self-llm issue #506",
        signs=(
            Sign("Multimodal data was passed (via `image_grid_thw` or `video_grid_thw`) but `mm_token_type_ids` is missing"),
        ),
    ),
    Failure(
        name="inputs-unused-by-model",
        cause=(
            "generate was given an input that the model's forward does not have: it is of another model's processor, or a "
            "package (liger-kernel for mm_token_type_ids) replaced forward by an older one."
        ),
        cure="take it out of the inputs before generate, or install a release of that package which knows this transformers",
        source="transformers/generation/utils.py; linkedin/Liger-Kernel issue #1117",
        signs=(Sign("The following `model_kwargs` are not used by the model: "),),
    ),
    Failure(
        name="special-token-unknown",
        cause="The eos_token or pad_token that trl was given is not in the vocabulary of the tokenizer.",
        cure=(
            "set eos_token or pad_token of the configuration to a token of this tokenizer (tokenizer.get_vocab()), such as "
            "<|im_end|>, or to None for its own"
        ),
        source="trl/trainer/sft_trainer.py; huggingface/trl issue #3822",
        signs=(
            Sign("The specified `eos_token` ('{}') is not found in the vocabulary of the given `processing_class`"),
            Sign("The specified `pad_token` ('{}') is not found in the vocabulary of the given `processing_class`"),
        ),
    ),
)
