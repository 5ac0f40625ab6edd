{% test unique_combination(model, columns) %}
-- rows that share the combination of columns which is the model's key
select {{ columns | join(', ') }}, count(*) as rows_of_one_key
from {{ model }}
group by {{ columns | join(', ') }}
having count(*) > 1
{% endtest %}
