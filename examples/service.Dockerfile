# The service of examples/service.py on a computer without a GPU: torch's build for the CPU, 1 GB instead of 5.5.
#
#     docker build -f examples/service.Dockerfile -t promptreid-service .
#     docker run --rm -p 127.0.0.1:8000:8000 --user "$(id -u)" -e SERVICE_TOKEN=a-long-secret \
#         -v "$PWD/gallery:/data/gallery:ro" promptreid-service
#
# A gallery with an audit log is written to: leave its :ro out.
# With your own prompts: -v "$PWD/run/model:/data/model:ro" -e SERVICE_MODEL=/data/model
FROM python:3.12-slim
RUN pip install --no-cache-dir "uv>=0.7"
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN uv pip install --system --no-cache --torch-backend cpu /src "fastapi>=0.115" "uvicorn>=0.30"
COPY examples/service.py /app/
WORKDIR /data
# A search needs the gallery's own files and no images. They are readable only by their owner, so run the container as that user (--user).
ENV SERVICE_GALLERY=/data/gallery SERVICE_HOST=0.0.0.0 HF_HOME=/tmp/hub
USER 1000
EXPOSE 8000
CMD ["python", "/app/service.py"]
