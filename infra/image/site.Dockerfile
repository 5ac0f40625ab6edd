# The image with the weights of your site, for Kubernetes: a folder `weights` with ONNX files beside it is the context.
#   docker build --file infra/image/site.Dockerfile --tag city/dangerous-driving:0.1.0-yolo11n FOLDER
ARG IMAGE=dangerous-driving:0.1.0
FROM $IMAGE
COPY --chmod=644 weights/*.onnx /weights/
