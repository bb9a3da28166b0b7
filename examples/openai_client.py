"""Chat with a running `core serve` through OpenAI's own client (pip install openai)."""

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "Name three primary colours."}]
for chunk in client.chat.completions.create(model=model, messages=messages, stream=True, max_tokens=64):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
