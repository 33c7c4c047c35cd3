# Two images: `web` has no machine-learning library at all, `worker` adds torch (TORCH_INDEX_URL may name its index).
FROM python:3.11-slim AS web
WORKDIR /srv/lethe
COPY requirements-web.lock pyproject.toml README.md ./
RUN pip install --no-cache-dir --require-hashes --no-deps -r requirements-web.lock
COPY manage.py ./
COPY deletion_service deletion_service
COPY workers workers
COPY ml ml
COPY migrations migrations
RUN pip install --no-cache-dir --no-deps . \
 && LETHE_SECRET_KEY=collectstatic python manage.py collectstatic --no-input \
 && useradd --create-home lethe \
 && mkdir -p /data/keystore /data/registry /data/sources /data/work /data/exact && chown -R lethe /data
USER lethe

FROM web AS worker
USER root
ARG TORCH_INDEX_URL=""
COPY requirements.lock ./
RUN pip install --no-cache-dir ${TORCH_INDEX_URL:+--index-url ${TORCH_INDEX_URL}} torch==2.13.0 \
 && pip install --no-cache-dir --require-hashes --no-deps -r requirements.lock
USER lethe
