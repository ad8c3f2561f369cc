// Chat templates: compiling and rendering code that came with a model.
#include <cstdlib>
#include <cstring>

#include "model/tokenizer_ffi/tokenizer_ffi.h"
#include "tests/fuzz/driver.h"

namespace retort {
namespace {

constexpr char kMessages[] =
    R"([{"role":"system","content":"Be brief."},{"role":"user","content":"2 + 2?"},)"
    R"({"role":"assistant","content":"<think>\nadd\n</think>\n4","tool_calls":[{"type":"function","function":{"name":"f","arguments":{"x":1.5}}}]},)"
    R"({"role":"user","content":[{"type":"text","text":"and é?"}]}])";
constexpr char kVariables[] =
    R"({"add_generation_prompt":true,"enable_thinking":false,"bos_token":"<s>","eos_token":"</s>","tools":[{"name":"f","n":[1,2.5,null]}]})";

RetortSlice Slice(const char* text) { return {reinterpret_cast<const uint8_t*>(text), std::strlen(text)}; }

// No text is a reason for the engine to fall over.
void Check(int32_t code, RetortBytes message) {
  if (code == kRetortFfiPanicked) std::abort();
  if (code != kRetortFfiOk) retort_bytes_free(message);
}

}  // namespace

std::vector<std::string> Seeds() {
  // NOLINTBEGIN(bugprone-suspicious-missing-comma): each is longer than a line
  return {
      "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m.content|string|trim + '<|im_end|>' + '\\n' "
      "}}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
      "{%- set ns = namespace(first=true, last=messages|length - 1) -%}{%- for m in messages[::-1] -%}{%- if ns.first "
      "and m.role == 'user' "
      "and not(m.content is string and m.content.startswith('<tool>')) -%}{%- set ns.first = false -%}{%- set ns.last "
      "= loop.index0 -%}"
      "{%- endif -%}{%- endfor -%}{{ ns.last }}",
      "{% macro render(x, depth=0) %}{% if depth < 3 and x is mapping %}{% for k, v in x|dictsort %}{{ k ~ ':' }}{{ "
      "render(v, depth + 1) }}"
      "{% endfor %}{% else %}{{ x|tojson(indent=2) }}{% endif %}{% endmacro %}{{ render(messages[2]) }}",
      "{%- for m in messages %}{%- if m.role == 'assistant' %}{%- generation %}{{ "
      "(m.content.split('</think>')|last).lstrip('\\n') }}"
      "{%- endgeneration %}{%- elif loop.first and m.role in ['system', 'developer'] %}{{ bos_token }}{% else %}{% "
      "continue %}{% endif %}{% endfor %}",
      "{% set text %}{{ \"%s|%5.2f|%x\" % ('a', 3.14159, 255) }}{% endset %}{{ text.replace('a', 'b', "
      "1)|upper|center(20)|indent(2, true) }}"
      "{{ [3, 1, 2]|sort(reverse=true)|join(', ') }}{{ range(0, 10, 3)|list }}{{ (1, 'x')[0] // 2 ** 3 % 5 }}{{ "
      "'abc'[1:-1:1] }}",
      "{% filter upper %}{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|list }}{% "
      "endfilter %}"
      "{{ messages|groupby('role')|first }}{{ strftime_now('%d %b %Y') }}{{ raise_exception('no') if tools is none "
      "else tools|tojson }}",
      "{# a comment #}{% raw %}{{ not rendered }}{% endraw %}{% call(x) f() %}{{ x }}{% endcall %}{{ cycler('a', "
      "'b').next() }}"
      "{{ dict(a=1, b=[2])|items|list }}{{ 1 if messages else 2 }}{{ not none is defined }}{% break %}",
  };
  // NOLINTEND(bugprone-suspicious-missing-comma)
}

}  // namespace retort

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  RetortTemplate* compiled = nullptr;
  RetortBytes message{};
  const int32_t made = retort_template_new({data, size}, 1'700'000'000, &compiled, &message);
  retort::Check(made, message);
  if (made != kRetortFfiOk) return 0;
  RetortBytes text{};
  RetortIds spans{};
  const int32_t rendered =
      retort_template_render(compiled, retort::Slice(retort::kMessages), retort::Slice(retort::kVariables),
                             {nullptr, 0}, &text, &spans, &message);
  retort::Check(rendered, message);
  if (rendered == kRetortFfiOk) {
    retort_bytes_free(text);
    retort_ids_free(spans);
  }
  retort_template_free(compiled);
  return 0;
}
