// The files of a tokenizer of words, small enough to be written down.
#pragma once

namespace retort {

inline constexpr char kTinyTokenizer[] = R"({
  "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
  "added_tokens": [
    {"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
    {"id": 1, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
  "pre_tokenizer": {"type": "WhitespaceSplit"},
  "model": {"type": "WordLevel", "unk_token": "<unk>",
            "vocab": {"<unk>": 0, "</s>": 1, "a": 2, "b": 3, "c": 4, "d": 5, "user": 6, "assistant": 7}}
})";

// Turns are "role content </s>"; with {% generation %} blocks.
inline constexpr char kTinyTokenizerConfig[] = R"({
  "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>",
  "chat_template": "{% for m in messages %}{{ m.role }} {% if m.role == 'assistant' %}{% generation %}{{ m.content }} </s>{% endgeneration %}{% else %}{{ m.content }} {% endif %}{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
})";

}  // namespace retort
