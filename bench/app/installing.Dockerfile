# As in the procedure's Dockerfile: the commit is copied first, so whatever it changes, all packages are installed anew.
ARG BASE
FROM $BASE
ARG BOOT
ARG GRACE
ENV BOOT=$BOOT GRACE=$GRACE
COPY . /app/
RUN pip3 install --quiet --no-cache-dir --no-index --find-links /app/wheels --requirement /app/requirements.txt
EXPOSE 8000
STOPSIGNAL SIGTERM
CMD ["python3", "-S", "/app/app.py"]
